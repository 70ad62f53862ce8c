/* SPDX-License-Identifier: LGPL-2.1-or-later */

/*
 * A VMM for scenarios that does what a VMM must not: leaves interrupts on, says nothing, runs on after it
 * has committed. What it is to do wrong stands in the file /etc/rogue/NAME.orders, a word a line, read anew
 * at each event:
 *
 *     leave-intx, leave-msi, leave-msix   interrupts of that type stay on at quiesce
 *     silent-prepare, silent-quiesce, silent-commit, silent-resume   no answer
 *     run-after-commit                    writes into guest RAM as fast as it can after Committed
 *     late-commit                         half a second before Committed
 *     die-quiesce, die-commit             ends instead of answering
 *     hold-after-retrieve                 after the jump: retrieves all, and does not say that it runs
 *
 * Each thing that happens is a line "NAME: what" on stdout.
 *
 *     rogue-vmm NAME [--device BDF]... [--igb BDF] [--ram MIB] [--holes MIB] [--socket PATH]
 *
 * It keeps its iommufd to itself, so that devices behind an IOMMU are reset.
 *
 * The igb of --igb does DMA all the time, see rogue-igb.h, and needs a host without an IOMMU. Marks in
 * QEMU's trace: 1 before Committed, 10 before the first thing that is done to it after the jump; 20 when a
 * machine with a device, of whatever kind, is told to resume and says nothing.
 *
 *     rogue-vmm --hold BDF
 *
 * opens the device and holds it, without a word to luvfiod; "kvm": a KVM machine.
 *
 *     rogue-vmm --claim NAME
 *
 * tries to take the machine of that name; the exit code is 0 if that was refused.
 */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/iommufd.h>
#include <linux/kvm.h>
#include <linux/vfio.h>
#include <luvfio/luvfio.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "rogue-igb.h"

/* Newer than the headers that this is compiled with. */
struct ioas_noiommu_get_pa {
        uint32_t size, flags, ioas_id, reserved;
        uint64_t iova, length, out_phys;
};
#define IOAS_NOIOMMU_GET_PA _IO(IOMMUFD_TYPE, 0x95)

#define RAM_IOVA UINT64_C(0x100000000)
#define IGB_IOVA UINT64_C(0x200000000)
#define DEVICES_MAX 4
#define PAGE 4096u

typedef struct Device {
        const char *bdf;
        char name[32];
        int fd;
        int event[VFIO_PCI_NUM_IRQS];
        uint32_t id;
        bool receives; /* it is the machine's igb that does DMA all the time */
} Device;

typedef struct State {
        uint64_t magic, hash, generation, counter;
} State;

typedef struct Vmm {
        struct luvfio *luvfio;
        const char *name;
        Device devices[DEVICES_MAX];
        size_t n_devices;
        int iommu;
        uint32_t ioas;
        uint64_t ram_size, hole_size;
        int ram_fd, hole_fd, igb_fd;
        uint8_t *ram;
        Igb *igb;
        void *igb_registers;
        atomic_bool run, writing, stamp;
        uint64_t counter;
        bool resumed, taken_back, has_igb;
} Vmm;

#define STATE_MAGIC UINT64_C(0x726f6775653031)

static void say(const Vmm *v, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(const Vmm *v, const char *format, ...)
{
        va_list ap;

        printf("%s: ", v->name);
        va_start(ap, format);
        vprintf(format, ap);
        va_end(ap);
        printf("\n");
        fflush(stdout);
}

static _Noreturn void die(const Vmm *v, const char *what, int error)
{
        say(v, "FAILED: %s: %s", what, strerror(error));
        exit(EXIT_FAILURE);
}

static bool ordered(const Vmm *v, const char *word)
{
        char path[128], line[64];
        bool found = false;
        FILE *f;

        snprintf(path, sizeof(path), "/etc/rogue/%s.orders", v->name);
        f = fopen(path, "re");
        if (!f)
                return false;
        while (!found && fgets(line, sizeof(line), f)) {
                line[strcspn(line, "\n")] = 0;
                found = strcmp(line, word) == 0;
        }
        fclose(f);
        return found;
}

static uint64_t realtime_usec(void)
{
        struct timespec t;

        clock_gettime(CLOCK_REALTIME, &t);
        return (uint64_t) t.tv_sec * 1000000 + (uint64_t) t.tv_nsec / 1000;
}

/* The last page carries a time stamp that run-after-commit writes, and is not part of it. */
static uint64_t hash(const Vmm *v)
{
        const uint64_t *p = (const uint64_t *) v->ram;
        uint64_t h = UINT64_C(14695981039346656037);

        for (size_t i = 0; i < (v->ram_size - PAGE) / sizeof(*p); i++)
                h = (h ^ p[i]) * UINT64_C(1099511628211);
        return h;
}

/* The "vCPUs". */
static void *writer(void *userdata)
{
        Vmm *v = userdata;
        uint64_t x = 88172645463325252;

        for (;;) {
                if (atomic_load(&v->stamp))
                        *(volatile uint64_t *) (v->ram + v->ram_size - PAGE) = realtime_usec();
                else if (atomic_load(&v->run)) {
                        atomic_store(&v->writing, true);
                        if (atomic_load(&v->run)) {
                                x ^= x << 13;
                                x ^= x >> 7;
                                x ^= x << 17;
                                v->counter++;
                                memcpy(v->ram + (x % (v->ram_size / PAGE - 1)) * PAGE, &v->counter, 8);
                                if (v->igb && !igb_take(v->igb, v->igb_registers))
                                        die(v, "igb", ENODATA);
                        }
                        atomic_store(&v->writing, false);
                        usleep(1000);
                } else
                        usleep(1000);
        }
        return NULL;
}

static void stop(Vmm *v)
{
        atomic_store(&v->run, false);
        while (atomic_load(&v->writing))
                usleep(100);
}

/* Devices. */

static int open_cdev(const char *bdf)
{
        char path[512];
        struct dirent *e;
        int fd = -1;
        DIR *d;

        snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev", bdf);
        d = opendir(path);
        if (!d)
                return -errno;
        while (fd < 0 && (e = readdir(d)))
                if (e->d_name[0] != '.') {
                        snprintf(path, sizeof(path), "/dev/vfio/devices/%s", e->d_name);
                        fd = open(path, O_RDWR | O_CLOEXEC);
                        if (fd < 0)
                                fd = -errno;
                        break;
                }
        closedir(d);
        return fd == -1 ? -ENOENT : fd;
}

static struct vfio_region_info region_of(Vmm *v, Device *d, unsigned index)
{
        struct vfio_region_info region = { .argsz = sizeof(region), .index = index };

        if (ioctl(d->fd, VFIO_DEVICE_GET_REGION_INFO, &region) < 0)
                die(v, "VFIO_DEVICE_GET_REGION_INFO", errno);
        return region;
}

static void bind_device(Vmm *v, Device *d)
{
        struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind), .iommufd = v->iommu };
        struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach), .pt_id = v->ioas };

        if (ioctl(d->fd, VFIO_DEVICE_BIND_IOMMUFD, &bind) < 0)
                die(v, "VFIO_DEVICE_BIND_IOMMUFD", errno);
        if (ioctl(d->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach) < 0)
                die(v, "VFIO_DEVICE_ATTACH_IOMMUFD_PT", errno);
}

/* Memory decoding and bus mastering, as any guest has them. */
static void enable_device(Vmm *v, Device *d)
{
        struct vfio_region_info region = region_of(v, d, VFIO_PCI_CONFIG_REGION_INDEX);
        uint16_t command;

        if (pread(d->fd, &command, 2, (off_t) region.offset + 4) != 2)
                die(v, "config read", errno);
        command |= 6;
        if (pwrite(d->fd, &command, 2, (off_t) region.offset + 4) != 2)
                die(v, "config write", errno);
}

static int set_irq(Device *d, unsigned index, bool on)
{
        struct {
                struct vfio_irq_set set;
                int32_t fd;
        } request = {
                .set = {
                        .argsz = sizeof(request),
                        .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
                        .index = index,
                        .count = 1,
                },
                .fd = d->event[index],
        };

        if (!on) {
                request.set.argsz = sizeof(request.set);
                request.set.flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
                request.set.count = 0;
        }
        return ioctl(d->fd, VFIO_DEVICE_SET_IRQS, &request) < 0 ? -errno : 0;
}

static const struct {
        const char *word;
        unsigned index;
} irq_types[] = {
        { "leave-intx", VFIO_PCI_INTX_IRQ_INDEX },
        { "leave-msi", VFIO_PCI_MSI_IRQ_INDEX },
        { "leave-msix", VFIO_PCI_MSIX_IRQ_INDEX },
};

static void interrupts(Vmm *v, bool running)
{
        for (size_t i = 0; i < v->n_devices; i++) {
                Device *d = &v->devices[i];
                unsigned wanted = VFIO_PCI_MSIX_IRQ_INDEX;
                bool on = running;
                int r;

                for (size_t k = 0; k < sizeof(irq_types) / sizeof(*irq_types); k++)
                        if (ordered(v, irq_types[k].word)) {
                                wanted = irq_types[k].index;
                                on = true;
                        }
                /* vfio has one type on at a time. */
                for (unsigned k = 0; k <= VFIO_PCI_MSIX_IRQ_INDEX; k++)
                        if (k != wanted || !on)
                                (void) set_irq(d, k, false);
                if (!on)
                        continue;
                r = set_irq(d, wanted, true);
                if (r < 0)
                        say(v, "FAILED: interrupts of %s: %s", d->bdf, strerror(-r));
        }
}

static void map_memory(Vmm *v, const void *memory, uint64_t size, uint64_t iova)
{
        struct iommu_ioas_map map = {
                .size = sizeof(map),
                .flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE,
                .ioas_id = v->ioas,
                .user_va = (uintptr_t) memory,
                .length = size,
                .iova = iova,
        };

        if (ioctl(v->iommu, IOMMU_IOAS_MAP, &map) < 0)
                die(v, "IOMMU_IOAS_MAP", errno);
}

static void open_iommu(Vmm *v)
{
        struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };

        v->iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
        if (v->iommu < 0)
                die(v, "/dev/iommu", errno);
        if (ioctl(v->iommu, IOMMU_IOAS_ALLOC, &alloc) < 0)
                die(v, "IOMMU_IOAS_ALLOC", errno);
        v->ioas = alloc.out_ioas_id;
        map_memory(v, v->ram, v->ram_size, RAM_IOVA);
        if (v->igb)
                map_memory(v, v->igb, IGB_SIZE, IGB_IOVA);
}

/* The igb that does DMA all the time. */

static void igb_map(Vmm *v)
{
        v->igb = mmap(NULL, IGB_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, v->igb_fd, 0);
        if (v->igb == MAP_FAILED)
                die(v, "mmap", errno);
}

static void igb_map_registers(Vmm *v, Device *d)
{
        struct vfio_region_info region = region_of(v, d, VFIO_PCI_BAR0_REGION_INDEX);

        v->igb_registers = mmap(NULL, region.size, PROT_READ | PROT_WRITE, MAP_SHARED, d->fd,
                                (off_t) region.offset);
        if (v->igb_registers == MAP_FAILED)
                die(v, "mmap of BAR 0", errno);
}

static uint64_t igb_physical(Vmm *v, size_t page)
{
        struct ioas_noiommu_get_pa get = {
                .size = sizeof(get),
                .ioas_id = v->ioas,
                .iova = IGB_IOVA + page * PAGE,
                .length = PAGE,
        };

        if (ioctl(v->iommu, IOAS_NOIOMMU_GET_PA, &get) < 0)
                die(v, "IOMMU_IOAS_NOIOMMU_GET_PA", errno);
        return get.out_phys;
}

static void igb_make(Vmm *v, Device *d)
{
        for (size_t i = 0; i <= IGB_RING; i++)
                v->igb->physical[i] = igb_physical(v, i);
        igb_map_registers(v, d);
        igb_start(v->igb, v->igb_registers);
        say(v, "igb %s has its ring at 0x%" PRIx64, d->bdf, v->igb->physical[0]);
}

/* Its device has run on: nobody has told it anything, and its memory is where it was. */
static void igb_take_back(Vmm *v, Device *d, enum luvfio_outcome outcome)
{
        unsigned waiting;

        if (outcome != LUVFIO_OUTCOME_RUNNING)
                die(v, "the igb did not run on", ENODEV);
        waiting = igb_waiting(v->igb);
        igb_map_registers(v, d);
        for (size_t i = 0; i <= IGB_RING; i++)
                if (v->igb->physical[i] != igb_physical(v, i))
                        die(v, "the igb's memory has moved", EFAULT);
        if (!igb_is_as_it_was(v->igb, v->igb_registers))
                die(v, "the igb is not as it was", EIO);
        if (system("/usr/local/bin/mark 10") != 0)
                die(v, "mark", EIO);
        if (!igb_take(v->igb, v->igb_registers))
                die(v, "a frame is missing", ENODATA);
        say(v, "igb ran on, %u frames came meanwhile", waiting);
}

/* Machine. */

static void must(Vmm *v, const char *what, int r)
{
        if (r < 0) {
                say(v, "FAILED: %s: %s", what, luvfio_get_error(v->luvfio));
                exit(EXIT_FAILURE);
        }
}

static void map_ram(Vmm *v)
{
        v->ram = mmap(NULL, v->ram_size, PROT_READ | PROT_WRITE, MAP_SHARED, v->ram_fd, 0);
        if (v->ram == MAP_FAILED)
                die(v, "mmap", errno);
}

static void make(Vmm *v)
{
        const struct luvfio_fd *info;

        v->ram_fd = memfd_create("ram", MFD_CLOEXEC);
        if (v->ram_fd < 0 || ftruncate(v->ram_fd, (off_t) v->ram_size) < 0)
                die(v, "memfd", errno);
        map_ram(v);
        for (uint64_t i = 0; i < v->ram_size; i += 8)
                *(uint64_t *) (v->ram + i) = i * UINT64_C(0x9e3779b97f4a7c15);
        memset(v->ram + v->ram_size - PAGE, 0, PAGE);
        must(v, "preserve ram", luvfio_preserve(v->luvfio, "ram", LUVFIO_KIND_MEMFD, v->ram_fd, NULL));
        if (v->hole_size > 0) {
                v->hole_fd = memfd_create("holes", MFD_CLOEXEC);
                if (v->hole_fd < 0 || ftruncate(v->hole_fd, (off_t) v->hole_size) < 0)
                        die(v, "memfd", errno);
                must(v, "preserve holes",
                     luvfio_preserve(v->luvfio, "holes", LUVFIO_KIND_MEMFD, v->hole_fd, NULL));
        }
        if (v->n_devices == 0)
                return;
        if (v->has_igb) {
                v->igb_fd = memfd_create("igb", MFD_CLOEXEC);
                if (v->igb_fd < 0 || ftruncate(v->igb_fd, IGB_SIZE) < 0)
                        die(v, "memfd", errno);
                igb_map(v);
                must(v, "preserve igb",
                     luvfio_preserve(v->luvfio, "igb", LUVFIO_KIND_MEMFD, v->igb_fd, NULL));
        }
        open_iommu(v);
        for (size_t i = 0; i < v->n_devices; i++) {
                Device *d = &v->devices[i];

                d->fd = open_cdev(d->bdf);
                if (d->fd < 0)
                        die(v, d->bdf, -d->fd);
                bind_device(v, d);
                enable_device(v, d);
                if (d->receives)
                        igb_make(v, d);
                must(v, "preserve device",
                     luvfio_preserve(v->luvfio, d->name, LUVFIO_KIND_VFIO, d->fd, &info));
                say(v, "outcome of %s: %s", d->bdf, luvfio_outcome_to_string(info->outcome));
        }
}

static int take(Vmm *v, const char *name, enum luvfio_outcome *ret_outcome)
{
        const struct luvfio_fd *info;
        int fd = luvfio_retrieve(v->luvfio, name, &info);

        must(v, name, fd);
        if (ret_outcome)
                *ret_outcome = info->outcome;
        return fd;
}

static void take_back(Vmm *v)
{
        State state;
        struct stat st;
        uint64_t h, stamp;
        int fd;

        v->ram_fd = take(v, "ram", NULL);
        if (fstat(v->ram_fd, &st) < 0)
                die(v, "fstat", errno);
        v->ram_size = (uint64_t) st.st_size;
        map_ram(v);
        fd = take(v, "state", NULL);
        if (pread(fd, &state, sizeof(state), 0) != sizeof(state) || state.magic != STATE_MAGIC)
                die(v, "state", EBADMSG);
        close(fd);
        h = hash(v);
        memcpy(&stamp, v->ram + v->ram_size - PAGE, 8);
        say(v, "ram %s", h == state.hash ? "identical" : "CHANGED");
        if (stamp)
                say(v, "last write after commit %" PRIu64, stamp);
        memset(v->ram + v->ram_size - PAGE, 0, 8);
        v->counter = state.counter;
        if (luvfio_find_fd(v->luvfio, "holes")) {
                v->hole_fd = take(v, "holes", NULL);
                (void) close(v->hole_fd);
        }
        if (v->n_devices == 0)
                return;
        if (luvfio_find_fd(v->luvfio, "igb")) {
                v->igb_fd = take(v, "igb", NULL);
                igb_map(v);
        }
        open_iommu(v);
        for (size_t i = 0; i < v->n_devices; i++) {
                Device *d = &v->devices[i];
                enum luvfio_outcome outcome;

                d->fd = take(v, d->name, &outcome);
                say(v, "outcome of %s: %s", d->bdf, luvfio_outcome_to_string(outcome));
                bind_device(v, d);
                if (d->receives)
                        igb_take_back(v, d, outcome);
                else
                        enable_device(v, d);
        }
}

/* Events. */

/* A luvfiod that was ended has lost what it held. */
static void hand_over_again(Vmm *v)
{
        if (!v->ram || luvfio_find_fd(v->luvfio, "ram"))
                return;
        must(v, "preserve ram", luvfio_preserve(v->luvfio, "ram", LUVFIO_KIND_MEMFD, v->ram_fd, NULL));
        if (v->igb)
                must(v, "preserve igb",
                     luvfio_preserve(v->luvfio, "igb", LUVFIO_KIND_MEMFD, v->igb_fd, NULL));
        for (size_t i = 0; i < v->n_devices; i++)
                must(v, "preserve device",
                     luvfio_preserve(v->luvfio, v->devices[i].name, LUVFIO_KIND_VFIO, v->devices[i].fd,
                                     NULL));
}

static void on_attached(struct luvfio *l, const struct luvfio_event *e, void *userdata)
{
        say(userdata, "attached %s", luvfio_state_to_string(e->state));
        if (e->state == LUVFIO_STATE_RUNNING)
                hand_over_again(userdata);
}

static void on_lost(struct luvfio *l, const char *reason, void *userdata)
{
        say(userdata, "lost: %s", reason);
}

static void on_prepare(struct luvfio *l, const struct luvfio_event *e, void *userdata)
{
        Vmm *v = userdata;

        say(v, "prepare");
        if (!ordered(v, "silent-prepare"))
                (void) luvfio_prepared(l);
}

static void on_quiesce(struct luvfio *l, const struct luvfio_event *e, void *userdata)
{
        Vmm *v = userdata;
        State state = { .magic = STATE_MAGIC };
        uint64_t stopped = luvfio_now();
        int fd;

        say(v, "quiesce");
        if (ordered(v, "die-quiesce"))
                raise(SIGKILL);
        if (ordered(v, "silent-quiesce"))
                return;
        stop(v);
        interrupts(v, false);
        state.hash = hash(v);
        state.counter = v->counter;
        fd = memfd_create("state", MFD_CLOEXEC);
        if (fd < 0 || pwrite(fd, &state, sizeof(state), 0) != sizeof(state))
                die(v, "state", errno);
        if (luvfio_preserve(l, "state", LUVFIO_KIND_STATE, fd, NULL) < 0 || luvfio_quiesced(l, stopped) < 0)
                say(v, "not quiesced: %s", luvfio_get_error(l));
        close(fd);
}

static void on_commit(struct luvfio *l, const struct luvfio_event *e, void *userdata)
{
        Vmm *v = userdata;

        say(v, "commit");
        if (ordered(v, "die-commit"))
                raise(SIGKILL);
        if (ordered(v, "silent-commit"))
                return;
        if (ordered(v, "late-commit"))
                usleep(500000);
        if (v->igb && system("/usr/local/bin/mark 1") != 0)
                die(v, "mark", EIO);
        if (luvfio_committed(l) < 0)
                say(v, "not committed: %s", luvfio_get_error(l));
        else if (ordered(v, "run-after-commit"))
                atomic_store(&v->stamp, true);
}

static void on_abort(struct luvfio *l, const struct luvfio_event *e, void *userdata)
{
        Vmm *v = userdata;

        say(v, "abort: %s", e->reason ? e->reason : "no reason");
        atomic_store(&v->stamp, false);
        if (v->ram) {
                /* The stamp of a commit that was taken back is not one of the next. */
                memset(v->ram + v->ram_size - PAGE, 0, 8);
        }
        interrupts(v, true);
        atomic_store(&v->run, true);
        if (luvfio_resumed(l, 0) < 0)
                say(v, "not resumed: %s", luvfio_get_error(l));
        else {
                say(v, "runs on");
                if (luvfio_get_state(l) == LUVFIO_STATE_RUNNING && luvfio_is_attached(l))
                        hand_over_again(v);
        }
}

static void on_resume(struct luvfio *l, const struct luvfio_event *e, void *userdata)
{
        Vmm *v = userdata;

        say(v, "resume");
        if (v->resumed) {
                (void) luvfio_resumed(l, 0);
                return;
        }
        if (ordered(v, "silent-resume")) {
                if (v->n_devices > 0 && system("/usr/local/bin/mark 20") != 0)
                        die(v, "mark", EIO);
                return;
        }
        /* luvfiod says it again when it has been away. */
        if (!v->taken_back)
                take_back(v);
        v->taken_back = true;
        if (ordered(v, "hold-after-retrieve")) {
                say(v, "retrieved, holds");
                return;
        }
        interrupts(v, true);
        atomic_store(&v->run, true);
        v->resumed = true;
        /* A luvfiod that was ended before it answered asks again. */
        if (luvfio_resumed(l, 0) < 0)
                say(v, "not resumed: %s", luvfio_get_error(l));
        else
                say(v, "resumed, generation %" PRIu64, luvfio_get_generation(l));
}

static void on_finished(struct luvfio *l, const struct luvfio_event *e, void *userdata)
{
        say(userdata, "finished");
}

static int hold(const char *what)
{
        Vmm v = { .name = "holder" };
        int fd;

        if (strcmp(what, "kvm") == 0) {
                fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
                if (fd < 0)
                        die(&v, "/dev/kvm", errno);
                if (ioctl(fd, KVM_CREATE_VM, 0) < 0)
                        die(&v, "KVM_CREATE_VM", errno);
        } else {
                fd = open_cdev(what);
                if (fd < 0)
                        die(&v, what, -fd);
        }
        say(&v, "holds %s", what);
        for (;;)
                pause();
}

static int claim(const char *name)
{
        Vmm v = { .name = "claimer" };
        int r;

        r = luvfio_new(&v.luvfio, name);
        if (r < 0)
                die(&v, "luvfio_new", -r);
        r = luvfio_register(v.luvfio);
        say(&v, "%s: %s", name, r < 0 ? luvfio_get_error(v.luvfio) : "TAKEN");
        luvfio_unref(v.luvfio);
        return r < 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

int main(int argc, char *argv[])
{
        static const struct luvfio_handlers handlers = {
                .size = sizeof(handlers),
                .attached = on_attached,
                .lost = on_lost,
                .prepare = on_prepare,
                .quiesce = on_quiesce,
                .commit = on_commit,
                .abort = on_abort,
                .resume = on_resume,
                .finished = on_finished,
        };
        Vmm v = { .name = argc > 1 ? argv[1] : NULL,
                  .ram_size = 16 << 20,
                  .ram_fd = -1,
                  .hole_fd = -1,
                  .igb_fd = -1 };
        pthread_t thread;
        int state;

        if (!v.name || (v.name[0] == '-' && argc != 3)) {
                fprintf(stderr,
                        "Usage: rogue-vmm NAME [--device BDF]... [--igb BDF] [--ram MIB] [--holes MIB]\n"
                        "       rogue-vmm --hold BDF|kvm | --claim NAME\n");
                return 2;
        }
        if (strcmp(v.name, "--hold") == 0)
                return hold(argv[2]);
        if (strcmp(v.name, "--claim") == 0)
                return claim(argv[2]);
        for (int i = 2; i + 1 < argc; i += 2)
                if ((strcmp(argv[i], "--device") == 0 || (strcmp(argv[i], "--igb") == 0 && !v.has_igb)) &&
                    v.n_devices < DEVICES_MAX) {
                        Device *d = &v.devices[v.n_devices];

                        d->bdf = argv[i + 1];
                        d->receives = strcmp(argv[i], "--igb") == 0;
                        v.has_igb = v.has_igb || d->receives;
                        snprintf(d->name, sizeof(d->name), "device%zu", v.n_devices++);
                        for (unsigned k = 0; k < VFIO_PCI_NUM_IRQS; k++)
                                d->event[k] = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
                } else if (strcmp(argv[i], "--ram") == 0)
                        v.ram_size = strtoull(argv[i + 1], NULL, 10) << 20;
                else if (strcmp(argv[i], "--holes") == 0)
                        v.hole_size = strtoull(argv[i + 1], NULL, 10) << 20;

        if (luvfio_new(&v.luvfio, v.name) < 0)
                die(&v, "luvfio_new", errno);
        must(&v, "handlers", luvfio_set_handlers(v.luvfio, &handlers, &v));
        must(&v, "vmm", luvfio_set_vmm(v.luvfio, "rogue-vmm"));
        must(&v, "register", luvfio_register(v.luvfio));
        state = luvfio_get_state(v.luvfio);
        say(&v, "registered %s, generation %" PRIu64, luvfio_state_to_string((enum luvfio_state) state),
            luvfio_get_generation(v.luvfio));
        if (state == LUVFIO_STATE_RUNNING || state == LUVFIO_STATE_ABORTING) {
                make(&v);
                interrupts(&v, true);
                atomic_store(&v.run, true);
                if (state == LUVFIO_STATE_ABORTING)
                        must(&v, "resumed", luvfio_resumed(v.luvfio, 0));
                say(&v, "runs");
        } else if (state == LUVFIO_STATE_RESUMING)
                on_resume(v.luvfio, NULL, &v);
        /* Where it waits for the resume event, there is no RAM yet for the "vCPUs". */
        while (!v.ram) {
                struct pollfd p = { .fd = luvfio_get_fd(v.luvfio), .events = POLLIN };

                (void) poll(&p, 1, -1);
                must(&v, "process", luvfio_process(v.luvfio));
        }
        if (pthread_create(&thread, NULL, writer, &v) != 0)
                die(&v, "pthread_create", EAGAIN);
        for (;;) {
                struct pollfd p = { .fd = luvfio_get_fd(v.luvfio), .events = POLLIN };

                (void) poll(&p, 1, -1);
                must(&v, "process", luvfio_process(v.luvfio));
        }
}
