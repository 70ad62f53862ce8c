/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <dirent.h>
#include <fcntl.h>
#include <linux/iommufd.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#include "vmm.h"

/* Newer than the headers of some distributions we build on (Linux 6.13). */
#ifndef IOMMU_IOAS_MAP_FILE
struct iommu_ioas_map_file {
        __u32 size;
        __u32 flags;
        __u32 ioas_id;
        __s32 fd;
        __aligned_u64 start;
        __aligned_u64 length;
        __aligned_u64 iova;
};
#define IOMMU_IOAS_MAP_FILE _IO(IOMMUFD_TYPE, 0x8f)
#endif

int iommu_open(Iommu *iommu)
{
        iommu->fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
        if (iommu->fd < 0)
                return log_error(negative_errno(), "/dev/iommu: %m");
        return 0;
}

/* An address space with all of RAM in it, mapped from the memfd itself: such a mapping does not depend on
 * this process's memory, which is what makes it possible to preserve it one day. */
int iommu_map(Iommu *iommu, int ram_fd, uint64_t size)
{
        struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
        struct iommu_ioas_map_file file = {
                .size = sizeof(file),
                .flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE,
                .fd = ram_fd,
                .length = size,
                .iova = RAM_BASE,
        };

        if (ioctl(iommu->fd, IOMMU_IOAS_ALLOC, &alloc) < 0)
                return log_error(negative_errno(), "IOMMU_IOAS_ALLOC: %m");
        iommu->ioas = file.ioas_id = alloc.out_ioas_id;
        if (ioctl(iommu->fd, IOMMU_IOAS_MAP_FILE, &file) < 0)
                return log_error(negative_errno(), "IOMMU_IOAS_MAP_FILE of %llu MiB: %m",
                                 (unsigned long long) (size / MIB));
        return 0;
}

static int sysfs_read_hex(const char *bdf, const char *attribute, unsigned *ret)
{
        _cleanup_fclose_ FILE *f = NULL;
        char path[96];

        snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", bdf, attribute);
        f = fopen(path, "re");
        if (!f)
                return log_error(negative_errno(), "device %s: %s: %m", bdf, path);
        if (fscanf(f, "%x", ret) != 1)
                return log_error(-EIO, "device %s: %s is no number", bdf, path);
        return 0;
}

int device_identify(Device *d)
{
        static const Driver *const drivers[] = { &igb_driver, &nvme_driver };
        unsigned vendor, device, class;
        int r;

        if (d->driver == &simulated_driver)
                return 0;
        r = sysfs_read_hex(d->bdf, "vendor", &vendor);
        if (r >= 0)
                r = sysfs_read_hex(d->bdf, "device", &device);
        if (r >= 0)
                r = sysfs_read_hex(d->bdf, "class", &class);
        if (r < 0)
                return r;
        for (size_t i = 0; i < ELEMENTSOF(drivers); i++)
                if (drivers[i]->match(vendor, device, class)) {
                        d->driver = drivers[i];
                        return 0;
                }
        return log_error(-EOPNOTSUPP, "device %s (%04x:%04x, class %06x) is neither igb nor NVMe", d->bdf,
                         vendor, device, class);
}

/* The character device of a PCI device that is bound to vfio-pci. */
int device_open(Device *d)
{
        char path[96];
        struct dirent *entry;
        DIR *dir;

        snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev", d->bdf);
        dir = opendir(path);
        if (!dir)
                return log_error(negative_errno(), "device %s is not bound to vfio-pci (%s: %m)", d->bdf,
                                 path);
        path[0] = 0;
        while ((entry = readdir(dir)))
                if (strncmp(entry->d_name, "vfio", 4) == 0)
                        snprintf(path, sizeof(path), "/dev/vfio/devices/%.32s", entry->d_name);
        closedir(dir);
        if (!path[0])
                return log_error(-ENODEV,
                                 "device %s has no character device; the kernel needs VFIO_DEVICE_CDEV",
                                 d->bdf);

        d->fd = open(path, O_RDWR | O_CLOEXEC);
        if (d->fd < 0)
                return log_error(negative_errno(), "device %s: %s: %m", d->bdf, path);
        return 0;
}

int device_attach(Device *d, const Iommu *iommu)
{
        struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind), .iommufd = iommu->fd };
        struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach), .pt_id = iommu->ioas };

        if (ioctl(d->fd, VFIO_DEVICE_BIND_IOMMUFD, &bind) < 0)
                return log_error(negative_errno(), "device %s: VFIO_DEVICE_BIND_IOMMUFD: %m", d->bdf);
        if (ioctl(d->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach) < 0)
                return log_error(negative_errno(), "device %s: VFIO_DEVICE_ATTACH_IOMMUFD_PT: %m", d->bdf);
        return 0;
}

static int region_info(Device *d, unsigned index, struct vfio_region_info *ret)
{
        *ret = (struct vfio_region_info) { .argsz = sizeof(*ret), .index = index };
        if (ioctl(d->fd, VFIO_DEVICE_GET_REGION_INFO, ret) < 0)
                return log_error(negative_errno(), "device %s: VFIO_DEVICE_GET_REGION_INFO %u: %m", d->bdf,
                                 index);
        return 0;
}

/* Config space and the registers in BAR 0. */
int device_setup(Device *d)
{
        struct vfio_region_info info;
        int r;

        r = region_info(d, VFIO_PCI_CONFIG_REGION_INDEX, &info);
        if (r < 0)
                return r;
        d->config_offset = info.offset;

        r = region_info(d, VFIO_PCI_BAR0_REGION_INDEX, &info);
        if (r < 0)
                return r;
        if (!(info.flags & VFIO_REGION_INFO_FLAG_MMAP))
                return log_error(-EOPNOTSUPP, "device %s: BAR 0 cannot be mapped", d->bdf);
        d->bar = mmap(NULL, info.size, PROT_READ | PROT_WRITE, MAP_SHARED, d->fd, (off_t) info.offset);
        if (d->bar == MAP_FAILED) {
                d->bar = NULL;
                return log_error(negative_errno(), "device %s: mmap of BAR 0: %m", d->bdf);
        }
        d->bar_size = info.size;
        return 0;
}

int device_bus_master(Device *d)
{
        uint16_t command;

        if (pread(d->fd, &command, sizeof(command), (off_t) (d->config_offset + PCI_COMMAND)) !=
            sizeof(command))
                return log_error(-EIO, "device %s: config space cannot be read", d->bdf);
        command |= PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
        if (pwrite(d->fd, &command, sizeof(command), (off_t) (d->config_offset + PCI_COMMAND)) !=
            sizeof(command))
                return log_error(-EIO, "device %s: config space cannot be written", d->bdf);
        return 0;
}

int device_reset(Device *d)
{
        if (ioctl(d->fd, VFIO_DEVICE_RESET) < 0)
                return log_error(negative_errno(), "device %s: VFIO_DEVICE_RESET: %m", d->bdf);
        return 0;
}

void device_close(Device *d)
{
        if (d->bar)
                (void) munmap(d->bar, d->bar_size);
        d->bar = NULL;
        d->irq_fd = safe_close(d->irq_fd);
        d->fd = safe_close(d->fd);
}

int device_interrupts_on(Device *d, int type, unsigned pending)
{
        union {
                struct vfio_irq_set set;
                uint8_t bytes[sizeof(struct vfio_irq_set) + sizeof(int)];
        } u = {
                .set = {
                        .argsz = sizeof(u),
                        .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
                        .index = (unsigned) type,
                        .count = 1,
                },
        };
        int r;

        r = device_interrupts_off(d);
        if (r < 0)
                return r;
        safe_close(d->irq_fd);
        d->irq_fd = eventfd(pending, EFD_CLOEXEC | EFD_NONBLOCK);
        if (d->irq_fd < 0)
                return log_error(negative_errno(), "device %s: eventfd: %m", d->bdf);
        memcpy(u.set.data, &d->irq_fd, sizeof(int));
        if (d->driver != &simulated_driver && ioctl(d->fd, VFIO_DEVICE_SET_IRQS, &u.set) < 0)
                return log_error(negative_errno(), "device %s: VFIO_DEVICE_SET_IRQS, type %i, on: %m",
                                 d->bdf, type);
        d->irq_type = type;
        return 0;
}

int device_interrupts_off(Device *d)
{
        struct vfio_irq_set set = {
                .argsz = sizeof(set),
                .flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER,
                .index = (unsigned) d->irq_type,
        };

        if (d->irq_type < 0)
                return 0;
        if (d->driver != &simulated_driver && ioctl(d->fd, VFIO_DEVICE_SET_IRQS, &set) < 0)
                return log_error(negative_errno(), "device %s: VFIO_DEVICE_SET_IRQS, type %i, off: %m",
                                 d->bdf, d->irq_type);
        d->irq_type = -1;
        return 0;
}

/* Of luvfiod's kernel series, as include/uapi/linux/vfio.h there has it. */
#define VFIO_DEVICE_FEATURE_LIVEUPDATE 0x4c55
#define VFIO_LIVEUPDATE_IRQ (1ULL << 4)

static int feature_liveupdate(Device *d, uint32_t operation, uint64_t *preserved)
{
        union {
                struct vfio_device_feature feature;
                struct {
                        uint32_t argsz, flags;
                        uint64_t preserved;
                } data;
        } u = {
                .data = {
                        .argsz = sizeof(u),
                        .flags = operation | VFIO_DEVICE_FEATURE_LIVEUPDATE,
                        .preserved = *preserved,
                },
        };

        if (d->driver == &simulated_driver || ioctl(d->fd, VFIO_DEVICE_FEATURE, &u) < 0)
                return -EOPNOTSUPP;
        *preserved = u.data.preserved;
        return 0;
}

bool device_latches(Device *d)
{
        uint64_t preserved = 0;

        return feature_liveupdate(d, VFIO_DEVICE_FEATURE_GET, &preserved) >= 0 &&
               (preserved & VFIO_LIVEUPDATE_IRQ);
}

void device_unlatch(Device *d)
{
        uint64_t preserved = 0;

        (void) feature_liveupdate(d, VFIO_DEVICE_FEATURE_SET, &preserved);
}

void device_interrupt_drain(Device *d)
{
        eventfd_t count;

        (void) eventfd_read(d->irq_fd, &count);
}

static uint64_t now_ms(void)
{
        struct timespec ts;

        (void) clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t) ts.tv_sec * 1000 + (uint64_t) ts.tv_nsec / 1000000;
}

int device_wait(Device *d, bool (*done)(Device *d), unsigned timeout_ms)
{
        uint64_t now = now_ms(), end = now + timeout_ms;
        struct pollfd p = { .fd = d->irq_fd, .events = POLLIN };
        bool told = false;
        eventfd_t count;

        for (; !told || !done(d); now = now_ms()) {
                if (now >= end)
                        return done(d) ? -ENOMSG : -ETIMEDOUT;
                if (poll(&p, 1, (int) (end - now)) > 0 && eventfd_read(d->irq_fd, &count) == 0) {
                        d->area->interrupts += count;
                        told = true;
                }
        }
        return 0;
}

uint32_t device_read32(Device *d, uint32_t reg)
{
        return *(volatile uint32_t *) ((uint8_t *) d->bar + reg);
}

void device_write32(Device *d, uint32_t reg, uint32_t value)
{
        /* What was written to RAM before is to be seen by the device that is told now. */
        atomic_thread_fence(memory_order_seq_cst);
        *(volatile uint32_t *) ((uint8_t *) d->bar + reg) = value;
}

uint64_t device_read64(Device *d, uint32_t reg)
{
        return device_read32(d, reg) | (uint64_t) device_read32(d, reg + 4) << 32;
}

void device_write64(Device *d, uint32_t reg, uint64_t value)
{
        device_write32(d, reg, (uint32_t) value);
        device_write32(d, reg + 4, (uint32_t) (value >> 32));
}

int device_poll32(Device *d, uint32_t reg, uint32_t mask, uint32_t value, unsigned timeout_ms)
{
        uint64_t end = now_ms() + timeout_ms;

        /* A register does not tell when it changes. */
        for (;;) {
                if ((device_read32(d, reg) & mask) == value)
                        return 0;
                if (now_ms() >= end)
                        return -ETIMEDOUT;
                (void) poll(NULL, 0, 1);
        }
}
