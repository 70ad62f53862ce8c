/* SPDX-License-Identifier: LGPL-2.1-or-later */

/*
 * What an iommufd costs in a live update, for a machine of so much memory in so many areas, with a device
 * attached.
 *
 *     iommufd-cost before BDF MIB AREAS KERNEL     bound to vfio-pci; ends with the jump
 *     iommufd-cost after                           bound to vfio-pci again
 *
 * Both print microseconds, a line each. Freezing is measured by a jump that is refused since the device has
 * an interrupt on: all is frozen but the device, and then not any more.
 */

#include <dirent.h>
#include <fcntl.h>
#include <linux/iommufd.h>
#include <linux/reboot.h>
#include <linux/vfio.h>
#include <stdarg.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#include "luo/luo-uapi.h"

#ifndef IOMMU_IOAS_MAP_FILE
struct iommu_ioas_map_file {
        __u32 size, flags, ioas_id;
        __s32 fd;
        __aligned_u64 start, length, iova;
};
#define IOMMU_IOAS_MAP_FILE _IO(IOMMUFD_TYPE, 0x8f)
#endif

#define SESSION "cost"
#define BASE (UINT64_C(1) << 32)
/* Between two areas, so that they are not one. */
#define GAP (UINT64_C(1) << 21)

enum { MEMFD = 1, IOMMUFD, DEVICE };
static const char *const names[] = { [MEMFD] = "memfd", [IOMMUFD] = "iommufd", [DEVICE] = "device" };

static void die(const char *format, ...)
{
        va_list ap;

        va_start(ap, format);
        vfprintf(stderr, format, ap);
        va_end(ap);
        fprintf(stderr, ": %s\n", strerror(errno));
        exit(1);
}

static uint64_t now(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t) ts.tv_sec * 1000000 + (uint64_t) ts.tv_nsec / 1000;
}

static void tell(const char *what, const char *name, uint64_t since)
{
        printf("%s %s %llu\n", what, name, (unsigned long long) (now() - since));
        fflush(stdout);
}

static void mark(const char *number)
{
        char command[32];

        snprintf(command, sizeof(command), "mark %s", number);
        if (system(command) != 0)
                die("%s", command);
}

static int open_device(const char *bdf)
{
        char path[128];
        struct dirent *e;
        DIR *d;
        int fd = -1;

        snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev", bdf);
        d = opendir(path);
        if (!d)
                die("%s", path);
        while (fd < 0 && (e = readdir(d)))
                if (strncmp(e->d_name, "vfio", 4) == 0) {
                        snprintf(path, sizeof(path), "/dev/vfio/devices/%.32s", e->d_name);
                        fd = open(path, O_RDWR | O_CLOEXEC);
                }
        closedir(d);
        if (fd < 0)
                die("device %s", bdf);
        return fd;
}

static void interrupt(int device, int on)
{
        struct {
                struct vfio_irq_set set;
                int fd;
        } irq = {
                .set = {
                        .argsz = on ? sizeof(irq) : sizeof(irq.set),
                        .flags = VFIO_IRQ_SET_ACTION_TRIGGER | (on ? VFIO_IRQ_SET_DATA_EVENTFD : VFIO_IRQ_SET_DATA_NONE),
                        .index = VFIO_PCI_MSIX_IRQ_INDEX,
                        .count = (uint32_t) on,
                },
                .fd = eventfd(0, EFD_CLOEXEC),
        };

        if (ioctl(device, VFIO_DEVICE_SET_IRQS, &irq) < 0)
                die("VFIO_DEVICE_SET_IRQS");
}

static int jump(void)
{
        return syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, NULL) <
                                               0
                               ? errno
                               : 0;
}

static void load(const char *kernel)
{
        char cmdline[4096];
        int image = open(kernel, O_RDONLY | O_CLOEXEC), initrd = open("/boot/initrd", O_RDONLY | O_CLOEXEC),
            f = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
        ssize_t n = read(f, cmdline, sizeof(cmdline) - 1);

        if (image < 0 || initrd < 0 || n <= 0)
                die("%s", kernel);
        cmdline[n - 1] = 0;
        if (syscall(SYS_kexec_file_load, image, initrd, (unsigned long) n, cmdline, 0UL) < 0)
                die("kexec_file_load");
        close(image);
        close(initrd);
        close(f);
}

static void before(const char *bdf, uint64_t size, uint64_t areas, const char *kernel)
{
        LuoUapiSession create = { .size = sizeof(create), .name = SESSION };
        struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };
        struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach) };
        struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
        int fds[4], luo;
        uint64_t since;

        fds[MEMFD] = memfd_create("memory", MFD_CLOEXEC);
        if (fds[MEMFD] < 0 || posix_fallocate(fds[MEMFD], 0, (off_t) size) != 0)
                die("memfd");
        fds[IOMMUFD] = bind.iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
        if (bind.iommufd < 0 || ioctl(bind.iommufd, IOMMU_IOAS_ALLOC, &alloc) < 0)
                die("/dev/iommu");
        fds[DEVICE] = open_device(bdf);
        attach.pt_id = alloc.out_ioas_id;
        if (ioctl(fds[DEVICE], VFIO_DEVICE_BIND_IOMMUFD, &bind) < 0 ||
            ioctl(fds[DEVICE], VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach) < 0)
                die("device %s", bdf);
        for (uint64_t i = 0; i < areas; i++) {
                struct iommu_ioas_map_file map = {
                        .size = sizeof(map),
                        .flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE |
                                 IOMMU_IOAS_MAP_WRITEABLE,
                        .ioas_id = alloc.out_ioas_id,
                        .fd = fds[MEMFD],
                        .start = i * (size / areas),
                        .length = size / areas,
                        .iova = BASE + i * (size / areas + GAP),
                };

                if (ioctl(fds[IOMMUFD], IOMMU_IOAS_MAP_FILE, &map) < 0)
                        die("area %llu", (unsigned long long) i);
        }

        luo = open(LUO_DEVICE, O_RDWR | O_CLOEXEC);
        if (luo < 0 || ioctl(luo, LUO_IOCTL_CREATE_SESSION, &create) < 0)
                die("/dev/liveupdate");
        for (int i = MEMFD; i <= DEVICE; i++) {
                LuoUapiFd preserve = {
                        .size = sizeof(preserve),
                        .fd = fds[i],
                        .token = (uint64_t) i,
                };

                since = now();
                if (ioctl(create.fd, LUO_IOCTL_PRESERVE_FD, &preserve) < 0)
                        die("preserve %s", names[i]);
                tell("preserve", names[i], since);
        }
        load(kernel);
        interrupt(fds[DEVICE], 1);
        sync();
        since = now();
        errno = jump();
        if (errno != EBUSY)
                die("a jump that is to be refused");
        tell("freeze", "all", since);
        interrupt(fds[DEVICE], 0);
        sync();
        mark("1");
        errno = jump();
        die("the jump");
}

static void after(void)
{
        LuoUapiSession session = { .size = sizeof(session), .name = SESSION };
        LuoUapiFinish finish = { .size = sizeof(finish) };
        int luo = open(LUO_DEVICE, O_RDWR | O_CLOEXEC);
        uint64_t since;

        if (luo < 0 || ioctl(luo, LUO_IOCTL_RETRIEVE_SESSION, &session) < 0)
                die("/dev/liveupdate");
        for (int i = MEMFD; i <= DEVICE; i++) {
                LuoUapiFd retrieve = { .size = sizeof(retrieve), .token = (uint64_t) i };

                since = now();
                if (ioctl(session.fd, LUO_IOCTL_RETRIEVE_FD, &retrieve) < 0)
                        die("retrieve %s", names[i]);
                tell("retrieve", names[i], since);
        }
        mark("2");
        since = now();
        if (ioctl(session.fd, LUO_IOCTL_FINISH, &finish) < 0)
                die("finish");
        tell("finish", "all", since);
}

int main(int argc, char **argv)
{
        if (argc == 6 && strcmp(argv[1], "before") == 0)
                before(argv[2], strtoull(argv[3], NULL, 10) << 20, strtoull(argv[4], NULL, 10), argv[5]);
        else if (argc == 2 && strcmp(argv[1], "after") == 0)
                after();
        else {
                fprintf(stderr, "Usage: iommufd-cost before BDF MIB AREAS KERNEL | after\n");
                return 2;
        }
        return 0;
}
