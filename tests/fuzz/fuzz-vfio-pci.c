/* SPDX-License-Identifier: LGPL-2.1-or-later */

/*
 * What the plugin vfio-pci reads: 'P' a plan, as another version or a damaged manifest may give it; 'C' a
 * device's configuration space, which the device and its guest have written.
 */

#include <stdarg.h>

#include "../../plugins/vfio-pci/plan.h"
#include "fuzz.h"
#include "util/macro.h"

static const uint8_t *config;
static size_t config_size;

static int set_reason(struct luvfio_device *device, int error, const char *format, ...)
{
        char text[1024];
        va_list ap;

        va_start(ap, format);
        FUZZ_REQUIRE(vsnprintf(text, sizeof(text), format, ap) > 0);
        va_end(ap);
        FUZZ_REQUIRE(error < 0);
        return error;
}

static int config_read(struct luvfio_device *device, unsigned offset, void *data, size_t size)
{
        if (offset > config_size || size > config_size - offset)
                return -ENODATA;
        memcpy(data, config + offset, size);
        return 0;
}

static int config_write(struct luvfio_device *device, unsigned offset, const void *data, size_t size)
{
        return offset > config_size || size > config_size - offset ? -ENODATA : 0;
}

static int attr_read(struct luvfio_device *device, const char *path, char *value, size_t size)
{
        return -ENOENT;
}

static const struct luvfio_host host = {
        .size = sizeof(host),
        .set_reason = set_reason,
        .config_read = config_read,
        .config_write = config_write,
        .attr_read = attr_read,
};

static void plan(const uint8_t *data, size_t size)
{
        _cleanup_free_ char *text = fuzz_string(data, size);
        char again[LUVFIO_PLAN_SIZE];
        struct plan p, q;

        if (plan_parse(&host, NULL, text, &p) < 0)
                return;
        FUZZ_REQUIRE(p.promise >= LUVFIO_PROMISE_RESET && p.promise <= LUVFIO_PROMISE_LATCHED);
        FUZZ_REQUIRE(memchr(p.driver, 0, sizeof(p.driver)) && memchr(p.handler, 0, sizeof(p.handler)));
        /* What was understood can be said again, and means the same. */
        FUZZ_REQUIRE(plan_format(&host, NULL, &p, again, sizeof(again)) >= 0);
        FUZZ_REQUIRE(plan_parse(&host, NULL, again, &q) >= 0);
        FUZZ_REQUIRE(p.promise == q.promise && p.command == q.command);
        FUZZ_REQUIRE(streq(p.driver, q.driver) && streq(p.handler, q.handler));
        FUZZ_REQUIRE(p.identity.serial == q.identity.serial && p.identity.vendor == q.identity.vendor);
        for (size_t i = 0; i < PCI_BARS; i++)
                FUZZ_REQUIRE(p.bars[i].address == q.bars[i].address && p.bars[i].size == q.bars[i].size);
}

static void space(const uint8_t *data, size_t size)
{
        struct msi_state state;
        uint16_t v;
        int r;

        config = data;
        config_size = size;
        r = config_msi_state(&host, NULL, &state);
        if (r >= 0) {
                /* Where it says that something is on, the register is there. */
                FUZZ_REQUIRE(!state.msi_on || config_read16(&host, NULL, state.msi_control, &v) >= 0);
                FUZZ_REQUIRE(!state.msix_on || config_read16(&host, NULL, state.msix_control, &v) >= 0);
        }
        (void) config_msi_off(&host, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        if (size < 1)
                return 0;
        if (data[0] == 'P')
                plan(data + 1, size - 1);
        else if (data[0] == 'C')
                space(data + 1, size - 1);
        return 0;
}
