/* SPDX-License-Identifier: LGPL-2.1-or-later */

/*
 * Intel 82576: one transmit and one receive ring, the PHY looped back, so that every frame sent is received.
 * As QEMU emulates it, and as the datasheet says: QEMU loops back by RCTL.LBM, real hardware by the PHY's
 * own bit.
 */

#include "vmm.h"

#define RING 64U
#define FRAME 512U
#define TIMEOUT_MS 5000U

enum {
        CTRL = 0x0000,
        STATUS = 0x0008,
        CTRL_EXT = 0x0018,
        MDIC = 0x0020,
        RCTL = 0x0100,
        TCTL = 0x0400,
        IMC = 0x150c,
        GPIE = 0x1514,
        EIMS = 0x1524,
        EIMC = 0x1528,
        EIAC = 0x152c,
        EIAM = 0x1530,
        EICR = 0x1580,
        IVAR0 = 0x1700,
        RDBAL = 0xc000,
        RDLEN = 0xc008,
        SRRCTL = 0xc00c,
        RDH = 0xc010,
        RDT = 0xc018,
        RXDCTL = 0xc028,
        TDBAL = 0xe000,
        TDLEN = 0xe008,
        TDH = 0xe010,
        TDT = 0xe018,
        TXDCTL = 0xe028,
};

#define BIT(n) (1U << (n))
#define CTRL_FULL_DUPLEX BIT(0)
#define CTRL_LINK_UP BIT(6)
#define CTRL_SPEED_1000 (2U << 8)
#define CTRL_SPEED_MASK (3U << 8)
#define CTRL_FORCE_SPEED BIT(11)
#define CTRL_FORCE_DUPLEX BIT(12)
#define CTRL_RESET BIT(26)
#define STATUS_LINK_UP BIT(1)
#define CTRL_EXT_LINK_MODE (3U << 22)
#define CTRL_EXT_DRIVER_LOADED BIT(28)
#define MDIC_PHY1 (1U << 21)
#define MDIC_WRITE (1U << 26)
#define MDIC_READY BIT(28)
#define MDIC_ERROR BIT(30)
#define PHY_CONTROL 0U
#define PHY_AUTONEG_RESTART 0x1200U
#define PHY_LOOPBACK_1000_FULL 0x4140U
/* On; broadcast, MAC loopback, no checksum behind the frame. */
#define RCTL_ON BIT(1)
#define RCTL_MODE (BIT(15) | BIT(6) | BIT(26))
/* What comes from outside, to whomever. */
#define RCTL_LISTEN (BIT(3) | BIT(4) | BIT(15) | BIT(26))
#define TCTL_ON_PAD (BIT(1) | BIT(3))
#define QUEUE_ON BIT(25)
#define SRRCTL_ONE_BUFFER (1U << 25)
#define GPIE_MSIX_AUTOMASK (BIT(4) | BIT(30))
#define IVAR_VALID BIT(7)

/* Advanced descriptors. */
#define TX_DATA_DESCRIPTOR (3U << 20)
#define TX_END BIT(24)
#define TX_CHECKSUM BIT(25)
#define TX_REPORT BIT(27)
#define TX_ADVANCED BIT(29)
#define DONE BIT(0)

typedef struct Descriptor {
        uint64_t address;
        uint32_t low;  /* transmit: command and length; received: status */
        uint32_t high; /* transmit: length of the payload; received: length */
} Descriptor;

/* In guest RAM, after the DeviceArea. */
typedef struct Igb {
        uint32_t tail; /* of both rings: each frame sent takes one place in both */
        uint32_t unused[11];
        _Alignas(128) Descriptor tx[RING];
        _Alignas(128) Descriptor rx[RING];
        _Alignas(128) uint8_t sent[2048];
        uint8_t received[2048];
} Igb;

#define MAIL_BUFFER 2048U

/* In the device's mail area: one place of a ring stays empty. */
typedef struct Mail {
        Descriptor rx[RING];
        uint8_t buffers[RING - 1][MAIL_BUFFER];
} Mail;

_Static_assert(sizeof(Mail) <= DEVICE_MAIL_SIZE, "the mail area is too small");

static Mail *mail_of(Device *d)
{
        return (Mail *) ((uint8_t *) d->area + DEVICE_MAIL_OFFSET);
}

static Igb *igb_of(Device *d)
{
        return (Igb *) ((uint8_t *) d->area + 128);
}

static uint64_t iova_of(Device *d, const void *p)
{
        return d->area_iova + (uint64_t) ((const uint8_t *) p - (const uint8_t *) d->area);
}

static bool igb_match(unsigned vendor, unsigned device, unsigned class)
{
        return vendor == 0x8086 && device == 0x10c9;
}

static int phy_write(Device *d, uint32_t reg, uint32_t value)
{
        int r;

        device_write32(d, MDIC, value | reg << 16 | MDIC_PHY1 | MDIC_WRITE);
        r = device_poll32(d, MDIC, MDIC_READY, MDIC_READY, 1000);
        if (r >= 0 && (device_read32(d, MDIC) & MDIC_ERROR))
                r = -EIO;
        if (r < 0)
                return log_error(r, "igb %s: PHY register %u cannot be written: %s", d->bdf, reg,
                                 strerror(-r));
        return 0;
}

static void ring_set(Device *d, uint32_t base, uint32_t length, uint32_t head, uint32_t tail,
                     const Descriptor *ring, uint32_t place)
{
        device_write64(d, base, iova_of(d, ring));
        device_write32(d, length, RING * sizeof(Descriptor));
        device_write32(d, head, place);
        device_write32(d, tail, place);
}

static int igb_start(Device *d)
{
        Igb *igb = igb_of(d);
        uint32_t ctrl;
        int r;

        r = device_bus_master(d);
        if (r < 0)
                return r;
        device_write32(d, CTRL, device_read32(d, CTRL) | CTRL_RESET);
        r = device_poll32(d, CTRL, CTRL_RESET, 0, 1000);
        if (r < 0)
                return log_error(r, "igb %s: reset does not end", d->bdf);
        device_write32(d, IMC, UINT32_MAX);
        device_write32(d, EIMC, UINT32_MAX);
        device_write32(d, CTRL_EXT,
                       (device_read32(d, CTRL_EXT) & ~CTRL_EXT_LINK_MODE) | CTRL_EXT_DRIVER_LOADED);

        /* QEMU brings the link up half a second after negotiation was asked for, and not otherwise; round()
         * waits for it. */
        r = phy_write(d, PHY_CONTROL, PHY_AUTONEG_RESTART);
        if (r >= 0)
                r = phy_write(d, PHY_CONTROL, PHY_LOOPBACK_1000_FULL);
        if (r < 0)
                return r;
        ctrl = device_read32(d, CTRL) & ~CTRL_SPEED_MASK;
        device_write32(d, CTRL,
                       ctrl | CTRL_SPEED_1000 | CTRL_FORCE_SPEED | CTRL_FORCE_DUPLEX | CTRL_FULL_DUPLEX |
                                       CTRL_LINK_UP);

        memset(igb, 0, sizeof(*igb));
        ring_set(d, TDBAL, TDLEN, TDH, TDT, igb->tx, 0);
        ring_set(d, RDBAL, RDLEN, RDH, RDT, igb->rx, 0);
        device_write32(d, TXDCTL, QUEUE_ON);
        device_write32(d, SRRCTL, SRRCTL_ONE_BUFFER);
        device_write32(d, RXDCTL, QUEUE_ON);
        device_write32(d, RCTL, RCTL_MODE | RCTL_ON);
        device_write32(d, TCTL, TCTL_ON_PAD);
        r = device_poll32(d, TXDCTL, QUEUE_ON, QUEUE_ON, 1000);
        if (r >= 0)
                r = device_poll32(d, RXDCTL, QUEUE_ON, QUEUE_ON, 1000);
        if (r < 0)
                return log_error(r, "igb %s: queues do not come up", d->bdf);

        /* Receive queue 0 is told by MSI-X vector 0, which masks itself and is opened again by the next
         * round. */
        device_write32(d, GPIE, GPIE_MSIX_AUTOMASK);
        device_write32(d, EIAC, 1);
        device_write32(d, EIAM, 1);
        device_write32(d, IVAR0, IVAR_VALID);
        return 0;
}

static bool igb_received(Device *d)
{
        Igb *igb = igb_of(d);
        const Descriptor *rx = &igb->rx[(igb->tail + RING - 1) % RING];

        return *(const volatile uint32_t *) &rx->low & DONE;
}

static int igb_round(Device *d, uint64_t round)
{
        Igb *igb = igb_of(d);
        Descriptor *tx = &igb->tx[igb->tail], *rx = &igb->rx[igb->tail];
        unsigned length;
        int r;

        r = device_poll32(d, STATUS, STATUS_LINK_UP, STATUS_LINK_UP, TIMEOUT_MS);
        if (r < 0)
                return log_error(r, "igb %s: the link does not come up", d->bdf);

        /* To everybody, from a local address, of the type for experiments. */
        memset(igb->sent, 0xff, 6);
        memcpy(igb->sent + 6, "\x02luvfi\x88\xb5", 8);
        memcpy(igb->sent + 14, &round, sizeof(round));
        for (unsigned i = 14 + sizeof(round); i < FRAME; i++)
                igb->sent[i] = (uint8_t) ((uint64_t) i * 7 + round);
        memset(igb->received, 0, sizeof(igb->received));

        *rx = (Descriptor) { .address = iova_of(d, igb->received) };
        *tx = (Descriptor) {
                .address = iova_of(d, igb->sent),
                .low = FRAME | TX_DATA_DESCRIPTOR | TX_END | TX_CHECKSUM | TX_REPORT | TX_ADVANCED,
                .high = FRAME << 14,
        };
        igb->tail = (igb->tail + 1) % RING;

        device_interrupt_drain(d);
        device_write32(d, EICR, UINT32_MAX);
        device_write32(d, EIMS, 1);
        device_write32(d, RDT, igb->tail);
        device_write32(d, TDT, igb->tail);
        r = device_wait(d, igb_received, TIMEOUT_MS);
        if (r < 0)
                return log_error(r, "igb %s: frame %llu %s", d->bdf, (unsigned long long) round,
                                 r == -ENOMSG ? "was received without an interrupt" : "was not received");

        atomic_thread_fence(memory_order_acquire);
        length = rx->high & 0xffff;
        if (length != FRAME || memcmp(igb->sent, igb->received, FRAME) != 0)
                return log_error(-EBADMSG, "igb %s: frame %llu came back with %u bytes, or changed", d->bdf,
                                 (unsigned long long) round, length);
        return 0;
}

static int igb_stop(Device *d)
{
        device_write32(d, EIMC, UINT32_MAX);
        device_write32(d, RCTL, RCTL_MODE);
        device_write32(d, TCTL, 0);
        /* Reading back: the device has seen it. */
        (void) device_read32(d, STATUS);
        return 0;
}

static int igb_restart(Device *d)
{
        device_write32(d, RCTL, RCTL_MODE | RCTL_ON);
        device_write32(d, TCTL, TCTL_ON_PAD);
        return 0;
}

/* Another receive ring, for frames from outside. */
static int receive_from(Device *d, const Descriptor *ring, uint32_t head, uint32_t tail)
{
        int r;

        device_write32(d, RXDCTL, 0);
        r = device_poll32(d, RXDCTL, QUEUE_ON, 0, 1000);
        if (r >= 0) {
                ring_set(d, RDBAL, RDLEN, RDH, RDT, ring, head);
                device_write32(d, RXDCTL, QUEUE_ON);
                r = device_poll32(d, RXDCTL, QUEUE_ON, QUEUE_ON, 1000);
        }
        if (r < 0)
                return log_error(r, "igb %s: the receive queue cannot be changed", d->bdf);
        device_write32(d, RDT, tail);
        return 0;
}

static int igb_listen(Device *d)
{
        Mail *mail = mail_of(d);
        int r;

        memset(mail, 0, sizeof(*mail));
        for (unsigned i = 0; i < RING - 1; i++)
                mail->rx[i].address = iova_of(d, mail->buffers[i]);
        r = receive_from(d, mail->rx, 0, RING - 1);
        if (r < 0)
                return r;
        /* The first frame is told, if anybody listens to that: the vector masks itself. */
        device_write32(d, EICR, UINT32_MAX);
        device_write32(d, EIMS, 1);
        device_write32(d, RCTL, RCTL_LISTEN | RCTL_ON);
        return 0;
}

static int igb_listened(Device *d, unsigned *ret)
{
        const Mail *mail = mail_of(d);
        Igb *igb = igb_of(d);
        unsigned n = 0;

        device_write32(d, RCTL, RCTL_MODE);
        (void) device_read32(d, STATUS);
        while (n < RING - 1 && (*(const volatile uint32_t *) &mail->rx[n].low & DONE))
                n++;
        *ret = n;
        return receive_from(d, igb->rx, igb->tail, igb->tail);
}

const Driver igb_driver = {
        .name = "igb",
        .match = igb_match,
        .start = igb_start,
        .round = igb_round,
        .stop = igb_stop,
        .restart = igb_restart,
        .listen = igb_listen,
        .listened = igb_listened,
};
