/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "vmm.h"

#define GUEST_MAGIC UINT64_C(0x6c75766667756573)
#define WORDS (PAGE / sizeof(uint64_t))
/* A tick of the guest: some pages, and every so often a round of every device. */
#define TICK_MS 2
#define PAGES_PER_TICK 8U
#define TICKS_PER_ROUND 20U

GuestHeader *guest_header(const Guest *g)
{
        return (GuestHeader *) g->ram;
}

static int map(Guest *g, uint64_t size, int flags)
{
        void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | flags, g->ram_fd, 0);

        if (p == MAP_FAILED)
                return log_error(negative_errno(), "guest RAM of %llu MiB: mmap: %m",
                                 (unsigned long long) (size / MIB));
        g->ram = p;
        g->size = size;
        for (size_t i = 0; i < g->n_devices; i++) {
                size_t offset = DEVICE_AREA_OFFSET + i * DEVICE_AREA_SIZE;

                g->devices[i].area = (DeviceArea *) (g->ram + offset);
                g->devices[i].area_iova = RAM_BASE + offset;
        }
        g->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        g->fail_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        g->round_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (g->kick_fd < 0 || g->fail_fd < 0 || g->round_fd < 0)
                return log_error(negative_errno(), "eventfd: %m");
        return 0;
}

/* What page number `page` holds since step `step` was written to it; all zero before any. */
static inline uint64_t pattern(uint64_t page, uint64_t step, size_t i)
{
        uint64_t x = page * UINT64_C(0x9e3779b97f4a7c15) ^ step * UINT64_C(0xd6e8feb86659fd93);

        return step ? x + i * UINT64_C(0xa0761d6478bd642f) : 0;
}

/* Step n writes the n-th page of the round through RAM, so it is known what must be in it before. */
static void step(Guest *g)
{
        GuestHeader *header = guest_header(g);
        uint64_t pages = (g->size - PATTERN_OFFSET) / PAGE, n = ++header->steps, page = (n - 1) % pages;
        uint64_t before = n > pages ? n - pages : 0;
        uint64_t *words = (uint64_t *) (g->ram + PATTERN_OFFSET + page * PAGE), wrong = 0;

        for (size_t i = 0; i < WORDS; i++)
                wrong |= words[i] ^ pattern(page, before, i);
        if (wrong != 0)
                header->errors++;
        for (size_t i = 0; i < WORDS; i++)
                words[i] = pattern(page, n, i);
}

int guest_create_ram(Guest *g, uint64_t size)
{
        uint64_t pages = (size - PATTERN_OFFSET) / PAGE;
        int r;

        g->ram_fd = memfd_create("guest-ram", MFD_CLOEXEC);
        if (g->ram_fd < 0 || ftruncate(g->ram_fd, (off_t) size) < 0)
                return log_error(negative_errno(), "guest RAM of %llu MiB: memfd: %m",
                                 (unsigned long long) (size / MIB));
        r = map(g, size, MAP_POPULATE);
        if (r < 0)
                return r;
        guest_header(g)->magic = GUEST_MAGIC;
        /* The guest boots: from here on no page of it is empty. */
        while (guest_header(g)->steps < pages)
                step(g);
        return 0;
}

/* RAM that came over the jump. */
int guest_map_ram(Guest *g, uint64_t size)
{
        struct stat st;
        int r;

        if (fstat(g->ram_fd, &st) < 0)
                return log_error(negative_errno(), "guest RAM: fstat: %m");
        if ((uint64_t) st.st_size != size || size < MEMORY_MIN_MIB * MIB || size % PAGE != 0)
                return log_error(-EBADMSG, "guest RAM has %llu bytes, the state document says %llu",
                                 (unsigned long long) st.st_size, (unsigned long long) size);
        r = map(g, size, 0);
        if (r < 0)
                return r;
        if (guest_header(g)->magic != GUEST_MAGIC)
                return log_error(-EBADMSG, "guest RAM is not this VMM's");
        return 0;
}

void guest_done(Guest *g)
{
        (void) guest_stop(g);
        if (g->ram)
                (void) munmap(g->ram, g->size);
        g->ram = NULL;
        g->ram_fd = safe_close(g->ram_fd);
        g->kick_fd = safe_close(g->kick_fd);
        g->fail_fd = safe_close(g->fail_fd);
        g->round_fd = safe_close(g->round_fd);
}

static int rounds(Guest *g)
{
        int r;

        for (size_t i = 0; i < g->n_devices; i++) {
                Device *d = &g->devices[i];

                r = d->driver->round(d, d->area->rounds + 1);
                if (r < 0)
                        return r;
                d->area->rounds++;
        }
        return 0;
}

static void *guest_main(void *userdata)
{
        struct pollfd p = { .events = POLLIN };
        Guest *g = userdata;
        bool told = false;

        p.fd = g->kick_fd;
        for (unsigned tick = 0; !atomic_load(&g->stop); tick++) {
                for (unsigned i = 0; i < PAGES_PER_TICK; i++)
                        step(g);
                if (tick % TICKS_PER_ROUND == 0) {
                        if (rounds(g) < 0) {
                                (void) eventfd_write(g->fail_fd, 1);
                                break;
                        }
                        if (!told)
                                (void) eventfd_write(g->round_fd, 1);
                        told = true;
                }
                /* The guest is idle until its next timer interrupt, or until it is kicked out. */
                (void) poll(&p, 1, TICK_MS);
        }
        return NULL;
}

int guest_run(Guest *g)
{
        eventfd_t count;
        int r;

        if (g->running)
                return 0;
        (void) eventfd_read(g->kick_fd, &count);
        (void) eventfd_read(g->round_fd, &count);
        atomic_store(&g->stop, false);
        r = pthread_create(&g->thread, NULL, guest_main, g);
        if (r != 0)
                return log_error(-r, "vCPU: pthread_create: %s", strerror(r));
        g->running = true;
        return 0;
}

int guest_stop(Guest *g)
{
        if (!g->running)
                return 0;
        atomic_store(&g->stop, true);
        (void) eventfd_write(g->kick_fd, 1);
        (void) pthread_join(g->thread, NULL);
        g->running = false;
        return 0;
}

static bool is_mail(const Guest *g, uint64_t offset)
{
        return offset >= DEVICE_AREA_OFFSET &&
               offset < DEVICE_AREA_OFFSET + g->n_devices * DEVICE_AREA_SIZE &&
               (offset - DEVICE_AREA_OFFSET) % DEVICE_AREA_SIZE >= DEVICE_MAIL_OFFSET;
}

/* Of every byte but mail, in order; not meant to withstand more than bad luck. Four lanes, since one would
 * wait for itself. */
uint64_t guest_checksum(const Guest *g)
{
        uint64_t lane[4] = { 1, 2, 3, 4 }, sum = g->size;

        for (uint64_t offset = 0; offset < g->size; offset += PAGE) {
                const uint64_t *words = (const uint64_t *) (g->ram + offset);

                if (is_mail(g, offset))
                        continue;
                for (size_t i = 0; i < WORDS; i += 4)
                        for (unsigned k = 0; k < 4; k++) {
                                lane[k] = (lane[k] ^ words[i + k]) * UINT64_C(0x9e3779b97f4a7c15);
                                lane[k] ^= lane[k] >> 29;
                        }
        }
        for (unsigned k = 0; k < 4; k++) {
                sum = (sum ^ lane[k]) * UINT64_C(0xd6e8feb86659fd93);
                sum ^= sum >> 32;
        }
        return sum;
}
