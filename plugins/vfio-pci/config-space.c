/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "config-space.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONFIG_SIZE 256u
#define CONFIG_EXTENDED_SIZE 4096u

#define PCI_STATUS 0x06u
#define PCI_STATUS_CAPABILITIES 0x10u
#define PCI_CAPABILITIES 0x34u
#define PCI_CAPABILITIES_FIRST 0x40u

#define CAPABILITY_MSI 0x05u
#define CAPABILITY_EXPRESS 0x10u
#define CAPABILITY_MSIX 0x11u
#define MSI_CONTROL 2u
#define MSI_ENABLE 0x0001u
#define MSI_VECTORS_SHIFT 4
#define MSI_64BIT 0x0080u
#define MSI_MASKABLE 0x0100u
#define MSIX_ENABLE 0x8000u
#define MSIX_FUNCTION_MASK 0x4000u

#define EXPRESS_SLOT_CAPABILITIES 0x14u
#define EXPRESS_SLOT_CONTROL 0x18u
#define EXPRESS_SLOT_STATUS 0x1au
#define SLOT_HOTPLUG_CAPABLE 0x40u
#define SLOT_HOTPLUG_INTERRUPT_ENABLE 0x20u
/* attention button, presence and data link layer state, as far as they have changed */
#define SLOT_EVENTS 0x109u

#define EXTENDED_FIRST 0x100u
#define EXTENDED_SERIAL 0x0003u

/* What a BAR is, of what the kernel says of it: I/O or memory, prefetchable, 64 bits. */
#define RESOURCE_TYPE 0x00102300u

static uint16_t get16(const unsigned char *p)
{
        return (uint16_t) (p[0] | p[1] << 8);
}

static uint32_t get32(const unsigned char *p)
{
        return get16(p) | (uint32_t) get16(p + 2) << 16;
}

int config_read16(const struct luvfio_host *host, struct luvfio_device *device, unsigned offset,
                  uint16_t *ret)
{
        unsigned char b[2];
        int r;

        r = host->config_read(device, offset, b, sizeof(b));
        if (r < 0) {
                /* What the caller does with *RET must not hang on what a callback returns. */
                (void) host->set_reason(device, r, "its configuration space cannot be read at 0x%x: %s",
                                        offset, strerror(-r));
                return r;
        }
        *ret = get16(b);
        return 0;
}

int config_write16(const struct luvfio_host *host, struct luvfio_device *device, unsigned offset,
                   uint16_t value)
{
        const unsigned char b[2] = { value & 0xff, value >> 8 };
        int r;

        r = host->config_write(device, offset, b, sizeof(b));
        if (r < 0)
                return host->set_reason(device, r, "its configuration space cannot be written at 0x%x: %s",
                                        offset, strerror(-r));
        return 0;
}

/*
 * Calls FN for each capability of the space C. -EBADMSG: the list leaves the space, runs into the header or
 * does not end; devices that do not answer read as all ones and end here too.
 */
static int for_each_capability(const unsigned char c[CONFIG_SIZE],
                               void (*fn)(void *userdata, unsigned id, unsigned offset), void *userdata)
{
        /* Each takes at least four bytes, so more of them there cannot be. */
        unsigned left = (CONFIG_SIZE - PCI_CAPABILITIES_FIRST) / 4;

        if (get16(c) == 0xffff)
                return -EBADMSG;
        if (!(get16(c + PCI_STATUS) & PCI_STATUS_CAPABILITIES))
                return 0;
        for (unsigned offset = c[PCI_CAPABILITIES] & ~3u; offset != 0; offset = c[offset + 1] & ~3u) {
                if (offset < PCI_CAPABILITIES_FIRST || left-- == 0 || c[offset] == 0xff)
                        return -EBADMSG;
                fn(userdata, c[offset], offset);
        }
        return 0;
}

struct msi_search {
        const unsigned char *config;
        struct msi_state *state;
};

/* Every vector that is in use. */
static int msi_is_masked(const unsigned char *config, unsigned offset, uint16_t flags)
{
        unsigned mask = offset + (flags & MSI_64BIT ? 0x10u : 0x0cu),
                 vectors = 1u << (flags >> MSI_VECTORS_SHIFT & 7);
        uint32_t used = vectors < 32 ? (1u << vectors) - 1 : UINT32_MAX;

        return (flags & MSI_MASKABLE) && mask + 4 <= CONFIG_SIZE && (get32(config + mask) & used) == used;
}

static void find_msi(void *userdata, unsigned id, unsigned offset)
{
        struct msi_search *s = userdata;
        unsigned control = offset + MSI_CONTROL;

        uint16_t flags = get16(s->config + control);

        if (id == CAPABILITY_MSI) {
                s->state->msi_control = control;
                s->state->msi_on = !!(flags & MSI_ENABLE);
                s->state->msi_masked = msi_is_masked(s->config, offset, flags);
        } else if (id == CAPABILITY_MSIX) {
                s->state->msix_control = control;
                s->state->msix_on = !!(flags & MSIX_ENABLE);
                s->state->msix_masked = !!(flags & MSIX_FUNCTION_MASK);
        }
}

int config_msi_state(const struct luvfio_host *host, struct luvfio_device *device, struct msi_state *ret)
{
        unsigned char config[CONFIG_SIZE];
        struct msi_search search = { config, ret };
        int r;

        memset(ret, 0, sizeof(*ret));
        /* Without CAP_SYS_ADMIN the kernel shows the header alone, and this fails with -ENODATA. */
        r = host->config_read(device, 0, config, sizeof(config));
        if (r < 0)
                return host->set_reason(device, r, "its configuration space cannot be read: %s",
                                        strerror(-r));
        r = for_each_capability(config, find_msi, &search);
        if (r < 0)
                return host->set_reason(
                                device, r,
                                get16(config) == 0xffff
                                                ? "the device does not answer"
                                                : "its list of capabilities is damaged, so it cannot be "
                                                  "said whether MSI or MSI-X is on");
        return 0;
}

int config_msi_off(const struct luvfio_host *host, struct luvfio_device *device)
{
        struct msi_state s;
        uint16_t control;
        int r;

        r = config_msi_state(host, device, &s);
        if (r >= 0 && s.msi_on) {
                r = config_read16(host, device, s.msi_control, &control);
                if (r >= 0)
                        r = config_write16(host, device, s.msi_control, control & (uint16_t) ~MSI_ENABLE);
        }
        if (r >= 0 && s.msix_on) {
                r = config_read16(host, device, s.msix_control, &control);
                if (r >= 0)
                        r = config_write16(host, device, s.msix_control, control & (uint16_t) ~MSIX_ENABLE);
        }
        return r;
}

static int read_id(const struct luvfio_host *host, struct luvfio_device *device, const char *attribute,
                   uint32_t *ret)
{
        char text[32], *end;
        unsigned long v;
        int r;

        r = host->attr_read(device, attribute, text, sizeof(text));
        if (r == -ENODEV)
                return host->set_reason(device, r, "it is not there");
        if (r < 0)
                return host->set_reason(device, r, "its %s cannot be read: %s", attribute, strerror(-r));
        errno = 0;
        v = strtoul(text, &end, 16);
        if (errno != 0 || end == text || *end != 0 || v > UINT32_MAX)
                return host->set_reason(device, -EBADMSG, "its %s is \"%s\", which is no number", attribute,
                                        text);
        *ret = (uint32_t) v;
        return 0;
}

/* 0 if it has none, or no extended configuration space. */
static int read_serial(const struct luvfio_host *host, struct luvfio_device *device, uint64_t *ret)
{
        unsigned char b[12];
        unsigned left = (CONFIG_EXTENDED_SIZE - EXTENDED_FIRST) / 8;
        int r;

        *ret = 0;
        for (unsigned offset = EXTENDED_FIRST; offset != 0 && left > 0; left--) {
                uint32_t header;

                r = host->config_read(device, offset, b, 4);
                if (r == -ENODATA)
                        return 0;
                if (r < 0)
                        return host->set_reason(device, r,
                                                "its configuration space cannot be read at 0x%x: %s", offset,
                                                strerror(-r));
                header = get32(b);
                if (header == 0 || header == UINT32_MAX)
                        return 0;
                if ((header & 0xffff) == EXTENDED_SERIAL) {
                        r = host->config_read(device, offset, b, sizeof(b));
                        if (r >= 0)
                                *ret = get32(b + 4) | (uint64_t) get32(b + 8) << 32;
                        return 0;
                }
                offset = header >> 20 & ~3u;
                if (offset < EXTENDED_FIRST)
                        return 0;
        }
        return 0;
}

int read_identity(const struct luvfio_host *host, struct luvfio_device *device, struct identity *ret)
{
        struct identity i = { 0 };
        int r;

        r = read_id(host, device, "vendor", &i.vendor);
        if (r >= 0)
                r = read_id(host, device, "device", &i.device);
        if (r >= 0)
                r = read_id(host, device, "subsystem_vendor", &i.subsystem_vendor);
        if (r >= 0)
                r = read_id(host, device, "subsystem_device", &i.subsystem_device);
        if (r >= 0)
                r = read_id(host, device, "class", &i.class_code);
        if (r >= 0)
                r = read_id(host, device, "revision", &i.revision);
        if (r >= 0)
                r = read_serial(host, device, &i.serial);
        if (r < 0)
                return r;
        *ret = i;
        return 0;
}

int read_bars(const struct luvfio_host *host, struct luvfio_device *device, struct bar ret[PCI_BARS])
{
        char text[4096], *line = text;
        int r;

        r = host->attr_read(device, "resource", text, sizeof(text));
        if (r < 0)
                return host->set_reason(device, r, "its BARs cannot be read: %s", strerror(-r));
        memset(ret, 0, sizeof(*ret) * PCI_BARS);
        for (unsigned i = 0; i < PCI_BARS; i++) {
                uint64_t start, end, flags;
                char *next = strchr(line, '\n');

                if (sscanf(line, "%" SCNx64 " %" SCNx64 " %" SCNx64, &start, &end, &flags) != 3 ||
                    end < start)
                        return host->set_reason(device, -EBADMSG,
                                                "what the kernel says of its BAR %u is no range", i);
                if (flags != 0)
                        ret[i] = (struct bar) { start, end - start + 1, flags & RESOURCE_TYPE };
                if (!next)
                        break;
                line = next + 1;
        }
        return 0;
}

static void find_express(void *userdata, unsigned id, unsigned offset)
{
        unsigned *express = userdata;

        if (id == CAPABILITY_EXPRESS)
                *express = offset;
}

int hotplug_pending(const struct luvfio_host *host, struct luvfio_device *device)
{
        unsigned char port[CONFIG_SIZE];
        unsigned express = 0;
        int r;

        r = host->bridge_read(device, 1, 0, port, sizeof(port));
        if (r == -ENOENT)
                return 0;
        if (r >= 0)
                r = for_each_capability(port, find_express, &express);
        if (r < 0)
                return host->set_reason(device, r, "the port it is plugged into cannot be read: %s",
                                        strerror(-r));
        if (express == 0 || express + EXPRESS_SLOT_STATUS + 2 > CONFIG_SIZE)
                return 0;
        /* If the kernel does not handle them, events of long ago may stand there for ever. */
        if (!(get32(port + express + EXPRESS_SLOT_CAPABILITIES) & SLOT_HOTPLUG_CAPABLE) ||
            !(get16(port + express + EXPRESS_SLOT_CONTROL) & SLOT_HOTPLUG_INTERRUPT_ENABLE))
                return 0;
        return !!(get16(port + express + EXPRESS_SLOT_STATUS) & SLOT_EVENTS);
}
