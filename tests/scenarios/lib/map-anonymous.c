/* SPDX-License-Identifier: LGPL-2.1-or-later */

/*
 * Machine anonymous: a VMM that hands a memfd and an iommufd over, with a page of anonymous memory at iova
 * 0x123000 until SIGUSR1 comes.
 */

#include <fcntl.h>
#include <linux/iommufd.h>
#include <luvfio/luvfio.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define IOVA 0x123000
#define PAGE 4096

static int memfd, iommufd;

static void *begin(void)
{
        memfd = memfd_create("ram", MFD_CLOEXEC);
        iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
        if (memfd < 0 || ftruncate(memfd, PAGE) < 0 || iommufd < 0)
                return MAP_FAILED;
        return mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

int main(void)
{
        struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
        struct iommu_ioas_map map = { .size = sizeof(map),
                                      .flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE,
                                      .length = PAGE,
                                      .iova = IOVA };
        struct iommu_ioas_unmap unmap = { .size = sizeof(unmap), .iova = IOVA, .length = PAGE };
        struct luvfio *l = NULL;
        void *page = begin();
        sigset_t signals;
        int signal;

        (void) sigemptyset(&signals);
        (void) sigaddset(&signals, SIGUSR1);
        if (page == MAP_FAILED || sigprocmask(SIG_BLOCK, &signals, NULL) < 0)
                return EXIT_FAILURE;
        if (ioctl(iommufd, IOMMU_IOAS_ALLOC, &alloc) < 0)
                return EXIT_FAILURE;
        map.ioas_id = unmap.ioas_id = alloc.out_ioas_id;
        map.user_va = (uintptr_t) page;
        if (ioctl(iommufd, IOMMU_IOAS_MAP, &map) < 0)
                return EXIT_FAILURE;
        if (luvfio_new(&l, "anonymous") < 0 || luvfio_register(l) < 0 ||
            luvfio_preserve(l, "ram", LUVFIO_KIND_MEMFD, memfd, NULL) < 0 ||
            luvfio_preserve(l, "iommu", LUVFIO_KIND_IOMMUFD, iommufd, NULL) < 0)
                return EXIT_FAILURE;
        puts("preserved");
        (void) fflush(stdout);
        (void) sigwait(&signals, &signal);
        if (ioctl(iommufd, IOMMU_IOAS_UNMAP, &unmap) < 0)
                return EXIT_FAILURE;
        return pause();
}
