/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/*
 * The example VMM. Its "guest" is a thread that stands in for a vCPU: it writes a pattern through all of RAM
 * and drives the devices. Everything the guest knows is in guest RAM, its device drivers' state too, as with
 * a real one; everything the VMM knows is in the state document.
 *
 *     main.c       options, the loop, what is done at each event of an update
 *     guest.c      RAM and the thread
 *     device.c     iommufd and VFIO
 *     igb.c nvme.c simulated.c     drivers: guest code, but for the place it runs in
 *     document.c   the state document and the report
 */

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "util/macro.h"

#define PAGE ((size_t) 4096)
#define MIB ((uint64_t) 1 << 20)

/* Guest-physical layout. RAM starts at 4 GiB, clear of the window where interrupts are messages. */
#define RAM_BASE (4096 * MIB)
#define DEVICES_MAX 8U
#define DEVICE_AREA_OFFSET ((size_t) MIB)
#define DEVICE_AREA_SIZE ((size_t) 256 << 10)
/* In a device's area: where the device may write while the guest stands, so that no checksum holds it. */
#define DEVICE_MAIL_OFFSET ((size_t) 128 << 10)
#define DEVICE_MAIL_SIZE (DEVICE_AREA_SIZE - DEVICE_MAIL_OFFSET)
#define PATTERN_OFFSET (4 * MIB)
#define MEMORY_MIN_MIB 16

/* One line to stderr, which is the journal's; returns r, so that `return log_error(-EIO, ...)` reads well.
 */
_printf_(2, 3) int log_error(int r, const char *format, ...);
_printf_(1, 2) void log_info(const char *format, ...);

/* -- devices -- */

typedef struct Device Device;

/* A driver's functions run in the guest's thread, or while it stands. */
typedef struct Driver {
        const char *name;
        bool (*match)(unsigned vendor, unsigned device, unsigned class);
        /* From reset to ready. */
        int (*start)(Device *d);
        /* Data by DMA out of RAM, and back into RAM, told by an interrupt, and compared. `round` counts up
         * from 1. */
        int (*round)(Device *d, uint64_t round);
        /* From here on no DMA. */
        int (*stop)(Device *d);
        /* Undoes stop of a device that was not reset. */
        int (*restart)(Device *d);
        /* Between stop and restart, with all of its state in guest RAM: the device is left receiving, into
         * its mail area. NULL: nothing comes to such a device by itself. */
        int (*listen)(Device *d);
        /* Undoes listen; how many times the device has written. */
        int (*listened)(Device *d, unsigned *ret);
        /* What round `round` left on the device is still there, where a device keeps anything; NULL: it does
         * not. */
        int (*kept)(Device *d, uint64_t round);
} Driver;

extern const Driver igb_driver, nvme_driver, simulated_driver;

/* In guest RAM, at the start of a device's area; a driver's own state follows. */
typedef struct DeviceArea {
        uint64_t rounds; /* done and found right */
        uint64_t interrupts;
        uint64_t listening; /* it was left receiving */
        uint8_t driver[];
} DeviceArea;

struct Device {
        char bdf[16];
        const Driver *driver;
        int fd;
        int irq_fd;
        int irq_type; /* that is on, or -1 */
        void *bar;
        size_t bar_size;
        uint64_t config_offset;
        DeviceArea *area;
        uint64_t area_iova;
        bool latched;   /* its interrupts were left on, to be held back */
        unsigned heard; /* how many times it wrote to RAM while the guest stood last, ... */
        unsigned told;  /* ... and how many interrupts came of that, afterwards */
};

typedef struct Iommu {
        int fd;
        uint32_t ioas;
} Iommu;

int iommu_open(Iommu *iommu);
int iommu_map(Iommu *iommu, int ram_fd, uint64_t size);

int device_identify(Device *d);
int device_open(Device *d);
int device_attach(Device *d, const Iommu *iommu);
int device_setup(Device *d);
int device_reset(Device *d);
void device_close(Device *d);
int device_bus_master(Device *d);
/* Type is one of VFIO_PCI_{INTX,MSI,MSIX}_IRQ_INDEX, the only one that is on then. The new eventfd starts at
 * `pending`. */
int device_interrupts_on(Device *d, int type, unsigned pending);
int device_interrupts_off(Device *d);
/* Whether interrupts that are on may stay on over a live update: the kernel has the device hold them back.
 */
bool device_latches(Device *d);
/* Lets them go again, if nobody else has: after an abort. */
void device_unlatch(Device *d);
/* Forgets interrupts so far. */
void device_interrupt_drain(Device *d);
/* Waits until done() says so, looking after every interrupt. -ETIMEDOUT: not done; -ENOMSG: done, but no
 * interrupt told it. */
int device_wait(Device *d, bool (*done)(Device *d), unsigned timeout_ms);

uint32_t device_read32(Device *d, uint32_t reg);
void device_write32(Device *d, uint32_t reg, uint32_t value);
uint64_t device_read64(Device *d, uint32_t reg);
void device_write64(Device *d, uint32_t reg, uint64_t value);
/* Waits for bits of a register. */
int device_poll32(Device *d, uint32_t reg, uint32_t mask, uint32_t value, unsigned timeout_ms);

/* -- guest -- */

/* The first page of RAM. */
typedef struct GuestHeader {
        uint64_t magic;
        uint64_t steps;
        uint64_t errors; /* pages that were not what the guest had written */
} GuestHeader;

typedef struct Guest {
        int ram_fd;
        uint8_t *ram;
        uint64_t size;
        Device *devices;
        size_t n_devices;

        pthread_t thread;
        bool running;
        int kick_fd;  /* for the thread: stop */
        int fail_fd;  /* from the thread: a device failed */
        int round_fd; /* from the thread: every device did a round since guest_run() */
        atomic_bool stop;
} Guest;

int guest_create_ram(Guest *g, uint64_t size);
int guest_map_ram(Guest *g, uint64_t size);
void guest_done(Guest *g);
int guest_run(Guest *g);
int guest_stop(Guest *g);
GuestHeader *guest_header(const Guest *g);
uint64_t guest_checksum(const Guest *g);

/* -- documents -- */

/* What the VMM has to know after the jump. */
typedef struct State {
        uint64_t ram_size;
        bool has_checksum;
        uint64_t checksum;
        uint64_t steps;
        uint32_t ioas; /* of the iommufd, which has it under the same id where it is preserved */
        size_t n_devices;
        struct {
                char bdf[16];
                uint64_t rounds;
                bool latched;
        } devices[DEVICES_MAX];
} State;

int state_write(const State *state, int *ret_fd);
int state_read(int fd, State *ret);

struct json_object;
/* Adds what happened to the report file, one JSON object a line, and to stdout. Takes the object. */
void report(const char *path, const char *event, const char *machine, const Guest *g,
            struct json_object *more);
