/* SPDX-License-Identifier: LGPL-2.1-or-later */

/*
 * NVMe: the admin queues and one pair of queues for I/O, all told by MSI-X vector 0. A round writes the last
 * block of namespace 1 and reads it back: what was in that block is lost.
 */

#include "vmm.h"

#define ENTRIES 16U
#define TIMEOUT_MS 10000U
#define QUEUE_ADMIN 0U
#define QUEUE_IO 1U

enum {
        CAP = 0x00,
        CC = 0x14,
        CSTS = 0x1c,
        AQA = 0x24,
        ASQ = 0x28,
        ACQ = 0x30,
        DOORBELLS = 0x1000,
};

#define CC_ENABLE 1U
#define CC_ENTRY_SIZES (6U << 16 | 4U << 20) /* 64 bytes submitted, 16 completed */
#define CSTS_READY 1U
#define CSTS_FATAL 2U

enum {
        ADMIN_CREATE_SQ = 0x01,
        ADMIN_CREATE_CQ = 0x05,
        ADMIN_IDENTIFY = 0x06,
        IO_FLUSH = 0x00,
        IO_WRITE = 0x01,
        IO_READ = 0x02,
};

typedef struct Submission {
        uint8_t opcode;
        uint8_t flags;
        uint16_t id;
        uint32_t namespace;
        uint64_t reserved;
        uint64_t metadata;
        uint64_t data[2];
        uint32_t argument[6]; /* command dwords 10 to 15 */
} Submission;

typedef struct Completion {
        uint32_t result;
        uint32_t reserved;
        uint16_t sq_head;
        uint16_t sq_id;
        uint16_t id;
        uint16_t status; /* bit 0: phase */
} Completion;

/* In guest RAM, after the DeviceArea. */
typedef struct Nvme {
        uint32_t block_size;
        uint32_t doorbell_stride;
        uint64_t last_block;
        uint32_t tail[2], head[2], phase[2];
        uint32_t waiting; /* queue of the command under way */
        _Alignas(PAGE) Submission sq[2][PAGE / sizeof(Submission)];
        _Alignas(PAGE) Completion cq[2][PAGE / sizeof(Completion)];
        _Alignas(PAGE) uint8_t written[PAGE];
        _Alignas(PAGE) uint8_t read[PAGE];
} Nvme;

static Nvme *nvme_of(Device *d)
{
        return (Nvme *) ((uint8_t *) d->area + PAGE);
}

static uint64_t iova_of(Device *d, const void *p)
{
        return d->area_iova + (uint64_t) ((const uint8_t *) p - (const uint8_t *) d->area);
}

static bool nvme_match(unsigned vendor, unsigned device, unsigned class)
{
        return class == 0x010802;
}

static bool nvme_completed(Device *d)
{
        Nvme *n = nvme_of(d);
        const Completion *c = &n->cq[n->waiting][n->head[n->waiting]];

        return (*(const volatile uint16_t *) &c->status & 1U) == n->phase[n->waiting];
}

static void doorbell(Device *d, unsigned queue, unsigned completion, uint32_t value)
{
        device_write32(d, DOORBELLS + (2 * queue + completion) * nvme_of(d)->doorbell_stride, value);
}

/* One command at a time, so a queue never fills and a completion is always that of the one command. */
static int nvme_command(Device *d, unsigned queue, const Submission *command, const char *what)
{
        Nvme *n = nvme_of(d);
        uint16_t status;
        int r;

        n->sq[queue][n->tail[queue]] = *command;
        n->tail[queue] = (n->tail[queue] + 1) % ENTRIES;
        n->waiting = queue;
        device_interrupt_drain(d);
        doorbell(d, queue, 0, n->tail[queue]);
        r = device_wait(d, nvme_completed, TIMEOUT_MS);
        if (r < 0)
                return log_error(r, "nvme %s: %s %s", d->bdf, what,
                                 r == -ENOMSG ? "was completed without an interrupt" : "was not completed");

        atomic_thread_fence(memory_order_acquire);
        status = n->cq[queue][n->head[queue]].status >> 1;
        n->head[queue] = (n->head[queue] + 1) % ENTRIES;
        if (n->head[queue] == 0)
                n->phase[queue] ^= 1;
        doorbell(d, queue, 1, n->head[queue]);
        if (status != 0)
                return log_error(-EIO, "nvme %s: %s failed, status 0x%x", d->bdf, what, status);
        return 0;
}

static int nvme_identify(Device *d)
{
        Nvme *n = nvme_of(d);
        Submission identify = {
                .opcode = ADMIN_IDENTIFY,
                .namespace = 1,
                .data = { iova_of(d, n->read) },
        };
        uint64_t blocks;
        unsigned format, shift;
        int r;

        r = nvme_command(d, QUEUE_ADMIN, &identify, "identify");
        if (r < 0)
                return r;
        memcpy(&blocks, n->read, sizeof(blocks));
        format = n->read[26] & 15;
        shift = n->read[128 + 4 * format + 2];
        if (blocks == 0 || shift < 9 || shift > 12)
                return log_error(-EOPNOTSUPP, "nvme %s: namespace 1 has %llu blocks of 2^%u bytes", d->bdf,
                                 (unsigned long long) blocks, shift);
        n->block_size = 1U << shift;
        n->last_block = blocks - 1;
        return 0;
}

static int nvme_start(Device *d)
{
        Submission create_cq = {
                .opcode = ADMIN_CREATE_CQ,
                .argument = { (ENTRIES - 1) << 16 | QUEUE_IO,
                              1U | 2U }, /* contiguous, interrupts, vector 0 */
        };
        Submission create_sq = {
                .opcode = ADMIN_CREATE_SQ,
                .argument = { (ENTRIES - 1) << 16 | QUEUE_IO, 1U | QUEUE_IO << 16 },
        };
        Nvme *n = nvme_of(d);
        unsigned timeout_ms;
        uint64_t cap;
        int r;

        r = device_bus_master(d);
        if (r < 0)
                return r;
        cap = device_read64(d, CAP);
        timeout_ms = (unsigned) (cap >> 24 & 0xff) * 500 + 500;

        device_write32(d, CC, 0);
        r = device_poll32(d, CSTS, CSTS_READY, 0, timeout_ms);
        if (r < 0)
                return log_error(r, "nvme %s: the controller does not stop", d->bdf);

        memset(n, 0, sizeof(*n));
        n->doorbell_stride = 4U << (cap >> 32 & 15);
        n->phase[QUEUE_ADMIN] = n->phase[QUEUE_IO] = 1;
        device_write32(d, AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1));
        device_write64(d, ASQ, iova_of(d, n->sq[QUEUE_ADMIN]));
        device_write64(d, ACQ, iova_of(d, n->cq[QUEUE_ADMIN]));
        device_write32(d, CC, CC_ENABLE | CC_ENTRY_SIZES);
        r = device_poll32(d, CSTS, CSTS_READY | CSTS_FATAL, CSTS_READY, timeout_ms);
        if (r < 0)
                return log_error(r, "nvme %s: the controller does not start", d->bdf);

        r = nvme_identify(d);
        if (r < 0)
                return r;
        create_cq.data[0] = iova_of(d, n->cq[QUEUE_IO]);
        create_sq.data[0] = iova_of(d, n->sq[QUEUE_IO]);
        r = nvme_command(d, QUEUE_ADMIN, &create_cq, "creating the completion queue");
        if (r >= 0)
                r = nvme_command(d, QUEUE_ADMIN, &create_sq, "creating the submission queue");
        return r;
}

static int nvme_block(Device *d, uint8_t opcode, const uint8_t *buffer, const char *what)
{
        Nvme *n = nvme_of(d);
        Submission command = {
                .opcode = opcode,
                .namespace = 1,
                .data = { buffer ? iova_of(d, buffer) : 0 },
                .argument = { (uint32_t) n->last_block, (uint32_t) (n->last_block >> 32) }, /* one block */
        };

        return nvme_command(d, QUEUE_IO, &command, what);
}

static void nvme_fill(uint8_t *block, size_t size, uint64_t round)
{
        memcpy(block, &round, sizeof(round));
        for (size_t i = sizeof(round); i < size; i++)
                block[i] = (uint8_t) (i * 11 + round);
}

/* Reads the block: is it that of this round? */
static int nvme_kept(Device *d, uint64_t round)
{
        Nvme *n = nvme_of(d);
        uint8_t expected[PAGE];
        int r;

        memset(n->read, 0, sizeof(n->read));
        r = nvme_block(d, IO_READ, n->read, "read");
        if (r < 0)
                return r;
        nvme_fill(expected, n->block_size, round);
        if (memcmp(n->read, expected, n->block_size) != 0)
                return log_error(-EBADMSG, "nvme %s: block %llu does not hold what round %llu wrote", d->bdf,
                                 (unsigned long long) n->last_block, (unsigned long long) round);
        return 0;
}

static int nvme_round(Device *d, uint64_t round)
{
        Nvme *n = nvme_of(d);
        int r;

        nvme_fill(n->written, n->block_size, round);
        r = nvme_block(d, IO_WRITE, n->written, "write");
        return r < 0 ? r : nvme_kept(d, round);
}

/* No command is under way between two rounds, so there is nothing to wait for but the disk itself. */
static int nvme_stop(Device *d)
{
        return nvme_block(d, IO_FLUSH, NULL, "flush");
}

static int nvme_restart(Device *d)
{
        return 0;
}

const Driver nvme_driver = {
        .name = "nvme",
        .match = nvme_match,
        .start = nvme_start,
        .round = nvme_round,
        .stop = nvme_stop,
        .restart = nvme_restart,
        .kept = nvme_kept,
};
