/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The plugin for any PCI device that the kernel's own vfio-pci driver can drive. See README.md. */

#include "config-space.h"
#include "plan.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DRIVER "vfio-pci"
#define SCORE 1

/* The kernel finds PCI devices before user space runs, but those behind a controller that is a module. */
#define WAIT_DEVICE_USEC ((uint64_t) 2000000)
#define WAIT_CDEV_USEC ((uint64_t) 5000000)

/* The kernel's way of preserving a vfio-pci device. What another one would mean is not known. */
#define HANDLER "vfio-pci-cdev-v1"

static int has_path(const struct luvfio_host *host, struct luvfio_device *device, const char *path)
{
        char text[4096];
        int r = host->attr_read(device, path, text, sizeof(text));

        /* Folders and links count too. */
        return r >= 0 || r == -EISDIR || r == -EXDEV || r == -EFBIG;
}

/* -ENOENT: the kernel cannot do it. The list has a line for each ABI: kind, name, and r, w or rw. */
static int kernel_can_preserve(const struct luvfio_host *host, struct luvfio_device *device)
{
        char list[4096], *save = NULL;
        int r;

        r = host->kernel_read(device, "liveupdate/abi", list, sizeof(list));
        if (r < 0)
                return r;
        for (char *line = strtok_r(list, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
                char kind[16], name[64], direction[8];

                if (sscanf(line, "%15s %63s %7s", kind, name, direction) == 3 && strcmp(kind, "file") == 0 &&
                    strcmp(name, HANDLER) == 0 && strchr(direction, 'w'))
                        return 0;
        }
        return -ENOENT;
}

/* What the kernel says of this device. A kernel that says nothing resets it. */
static enum luvfio_promise kernel_promise(const struct luvfio_host *host, struct luvfio_device *device)
{
        const uint64_t running = LUVFIO_PRESERVED_STATE | LUVFIO_PRESERVED_DMA;
        uint64_t preserved;

        if (!LUVFIO_HOST_HAS(host, preserved) || host->preserved(device, &preserved) < 0 ||
            (preserved & running) != running)
                return LUVFIO_PROMISE_RESET;
        return preserved & LUVFIO_PRESERVED_INTERRUPTS ? LUVFIO_PROMISE_LATCHED : LUVFIO_PROMISE_RUNNING;
}

static int is_driven(const struct luvfio_host *host, struct luvfio_device *device, char *driver, size_t size)
{
        int r = host->driver(device, driver, size);

        if (r == -ENOENT) {
                snprintf(driver, size, "no driver");
                return 0;
        }
        if (r < 0)
                return host->set_reason(device, r, "its driver cannot be read: %s", strerror(-r));
        return strcmp(driver, DRIVER) == 0;
}

static int vfio_pci_match(const struct luvfio_host *host, struct luvfio_device *device,
                          enum luvfio_promise *promise)
{
        char driver[64];
        int r;

        r = is_driven(host, device, driver, sizeof(driver));
        if (r < 0)
                return r;
        /* Other drivers of VFIO's too: preflight says what is wrong with them. */
        if (r == 0 && !has_path(host, device, "vfio-dev"))
                return 0;
        *promise = kernel_promise(host, device);
        return SCORE;
}

static void preflight_promise(const struct luvfio_host *host, struct luvfio_device *device)
{
        switch (kernel_promise(host, device)) {
        case LUVFIO_PROMISE_LATCHED:
                host->add_finding(device, LUVFIO_NOTE, "interrupts-latched", NULL,
                                  "its interrupts may stay on: the device holds them back during the jump, "
                                  "and they arrive "
                                  "afterwards");
                break;
        case LUVFIO_PROMISE_RUNNING:
                host->add_finding(device, LUVFIO_NOTE, "interrupts-off", NULL,
                                  "its interrupts have to be off during the jump: its VMM injects one of "
                                  "each afterwards");
                break;
        default:
                host->add_finding(device, LUVFIO_NOTE, "device-reset", NULL, "%s",
                                  has_path(host, device, "iommu_group")
                                                  ? "this kernel does not preserve it together with its "
                                                    "iommufd"
                                                  : "this kernel does not keep it running");
        }
}

static void preflight_kernel(const struct luvfio_host *host, struct luvfio_device *device)
{
        char state[16];

        if (host->attr_read(device, "liveupdate/state", state, sizeof(state)) < 0) {
                host->add_finding(device, LUVFIO_BLOCKER, "kernel-no-live-update",
                                  "boot a kernel with CONFIG_PCI_LIVEUPDATE and kho=on liveupdate=on",
                                  "this kernel does not keep PCI devices over a live update");
                return;
        }
        if (strcmp(state, "incoming") == 0)
                host->add_finding(device, LUVFIO_BLOCKER, "device-incoming",
                                  "let its machine finish the last update, or discard it",
                                  "the device still waits for its machine since the last live update");
        if (kernel_can_preserve(host, device) < 0)
                host->add_finding(device, LUVFIO_BLOCKER, "kernel-no-vfio-pci",
                                  "boot a kernel with CONFIG_VFIO_PCI_LIVEUPDATE, or update this plugin",
                                  "this kernel has no way to preserve a vfio-pci device that the plugin "
                                  "knows");
        else
                preflight_promise(host, device);
}

static void preflight_sriov(const struct luvfio_host *host, struct luvfio_device *device)
{
        char text[16];

        if (has_path(host, device, "physfn"))
                host->add_finding(device, LUVFIO_BLOCKER, "sriov-vf",
                                  "detach it from the machine for the update",
                                  "the device is a virtual function, which this version cannot preserve");
        if (host->attr_read(device, "sriov_numvfs", text, sizeof(text)) >= 0 && strtoul(text, NULL, 10) > 0)
                host->add_finding(device, LUVFIO_BLOCKER, "sriov-pf",
                                  "remove its virtual functions (write 0 to sriov_numvfs)",
                                  "the device has %s virtual functions, which this version cannot preserve",
                                  text);
}

static int vfio_pci_preflight(const struct luvfio_host *host, struct luvfio_device *device)
{
        char driver[64], text[128];
        struct msi_state msi;
        int r;

        r = is_driven(host, device, driver, sizeof(driver));
        if (r < 0)
                return r;
        if (r == 0)
                host->add_finding(device, LUVFIO_BLOCKER, "driver-not-vfio-pci",
                                  "bind the device to " DRIVER,
                                  "the device has %s, and only " DRIVER " can preserve it", driver);

        preflight_kernel(host, device);
        preflight_sriov(host, device);

        r = host->attr_read(device, "reset_method", text, sizeof(text));
        if ((r < 0 && r != -EFBIG) || r == 0)
                host->add_finding(device, LUVFIO_WARNING, "no-reset", NULL,
                                  "the device has no way to be reset: its DMA is stopped, and the rest of "
                                  "its state "
                                  "is left as it is");

        r = hotplug_pending(host, device);
        if (r < 0)
                return r;
        if (r > 0)
                host->add_finding(device, LUVFIO_BLOCKER, "hotplug-pending",
                                  "let the kernel handle it, or pull the device or push it in for good",
                                  "the port that the device is plugged into has a hotplug event pending");

        /* Better known now than in the blackout. */
        return config_msi_state(host, device, &msi);
}

/* Which types of interrupts the kernel has handlers for, and the name of one. */
struct handlers_found {
        int intx, msi, msix, other;
        char name[64];
};

static int note_handler(void *userdata, unsigned irq, const char *handler)
{
        struct handlers_found *f = userdata;

        (void) irq;
        if (strncmp(handler, "vfio-intx(", 10) == 0)
                f->intx = 1;
        else if (strncmp(handler, "vfio-msi[", 9) == 0)
                f->msi = 1;
        else if (strncmp(handler, "vfio-msix[", 10) == 0)
                f->msix = 1;
        else
                f->other = 1;
        snprintf(f->name, sizeof(f->name), "%.63s", handler);
        return 0;
}

static int vfio_pci_quiesced(const struct luvfio_host *host, struct luvfio_device *device)
{
        struct handlers_found found = { 0 };
        struct msi_state msi;
        char driver[64], types[64];
        uint16_t command;
        int r;

        r = is_driven(host, device, driver, sizeof(driver));
        if (r < 0)
                return r;
        if (r == 0)
                return host->set_reason(device, -ENODEV, "it has %s, not " DRIVER, driver);

        r = config_msi_state(host, device, &msi);
        if (r < 0)
                return r;
        r = host->interrupts(device, note_handler, &found);
        if (r < 0)
                return host->set_reason(device, r, "the kernel's interrupt handlers cannot be read: %s",
                                        strerror(-r));

        /*
         * Latched ones are on, and held back by the device: the kernel says that it latches, and the device
         * that it does. Whatever the kernel says, what is not held back is on.
         */
        if (kernel_promise(host, device) == LUVFIO_PROMISE_LATCHED) {
                r = config_read16(host, device, PCI_COMMAND, &command);
                if (r < 0)
                        return r;
                if (command & PCI_COMMAND_INTX_DISABLE)
                        found.intx = 0;
                if (msi.msi_on && msi.msi_masked)
                        found.msi = msi.msi_on = 0;
                if (msi.msix_on && msi.msix_masked)
                        found.msix = msi.msix_on = 0;
        }

        /*
         * The device says whether MSI and MSI-X are on. It does not for INTx, whose disable bit is the same
         * with INTx on and with nothing on; there, that vfio-pci has a handler is what counts.
         */
        snprintf(types, sizeof(types), "%s%s%s%s%s", found.intx ? "INTx" : "",
                 found.intx && (msi.msi_on || found.msi) ? ", " : "", msi.msi_on || found.msi ? "MSI" : "",
                 (found.intx || msi.msi_on || found.msi) && (msi.msix_on || found.msix) ? ", " : "",
                 msi.msix_on || found.msix ? "MSI-X" : "");
        if (*types)
                return host->set_reason(device, -EBUSY,
                                        "its %s interrupts are on; its VMM has to turn them off%s%s%s",
                                        types, *found.name ? " (handler " : "", found.name,
                                        *found.name ? ")" : "");
        if (found.other)
                return host->set_reason(device, -EBUSY,
                                        "an interrupt of it has a handler that is not VFIO's: %s",
                                        found.name);
        return 0;
}

static int vfio_pci_plan(const struct luvfio_host *host, struct luvfio_device *device, char *plan,
                         size_t size)
{
        struct plan p = { .driver = DRIVER, .handler = HANDLER };
        int r;

        r = kernel_can_preserve(host, device);
        if (r < 0)
                return host->set_reason(device, r, "this kernel has no way to preserve it");
        p.promise = kernel_promise(host, device);
        r = read_identity(host, device, &p.identity);
        if (r >= 0)
                r = read_bars(host, device, p.bars);
        if (r >= 0)
                r = config_read16(host, device, PCI_COMMAND, &p.command);
        if (r < 0)
                return r;
        return plan_format(host, device, &p, plan, size);
}

static int check_identity(const struct luvfio_host *host, struct luvfio_device *device,
                          const struct identity *was)
{
        struct identity is;
        int r;

        r = read_identity(host, device, &is);
        if (r < 0)
                return r;
        if (is.vendor != was->vendor || is.device != was->device ||
            is.subsystem_vendor != was->subsystem_vendor || is.subsystem_device != was->subsystem_device ||
            is.class_code != was->class_code || is.revision != was->revision)
                return host->set_reason(
                                device, -ESTALE,
                                "there is another device now: %04x:%04x subsystem %04x:%04x class %06x "
                                "revision %02x, it was %04x:%04x subsystem %04x:%04x class %06x revision "
                                "%02x",
                                is.vendor, is.device, is.subsystem_vendor, is.subsystem_device,
                                is.class_code, is.revision, was->vendor, was->device, was->subsystem_vendor,
                                was->subsystem_device, was->class_code, was->revision);
        if (is.serial != was->serial)
                return host->set_reason(device, -ESTALE,
                                        "there is another device of the same kind now: its serial number is "
                                        "%016llx, "
                                        "it was %016llx",
                                        (unsigned long long) is.serial, (unsigned long long) was->serial);
        return 0;
}

/* The kernel compares more than we do: whether the BARs have kept their addresses, the bridges above. */
static int check_not_blocked(const struct luvfio_host *host, struct luvfio_device *device)
{
        char by[32];

        if (host->attr_read(device, "liveupdate/blocked_by", by, sizeof(by)) < 0 ||
            strcmp(by, "identity") != 0)
                return 0;
        return host->set_reason(device, -ESTALE,
                                "the kernel blocks it: it is not the device that was preserved, it has lost "
                                "its BARs, or the bridge above it is another");
}

/* Gives the device to vfio-pci, which has to be the only one that can take it. */
static int bind_driver(const struct luvfio_host *host, struct luvfio_device *device, const struct plan *plan)
{
        char driver[64];
        int r;

        r = host->driver_override(device, DRIVER);
        if (r < 0)
                return host->set_reason(device, r, "driver_override cannot be set: %s", strerror(-r));
        r = is_driven(host, device, driver, sizeof(driver));
        if (r != 0)
                return r < 0 ? r : 0;

        if (host->driver(device, driver, sizeof(driver)) >= 0) {
                /* What it did to the device matters only if the device was to be left alone. */
                if (plan->promise != LUVFIO_PROMISE_RESET)
                        return host->set_reason(device, -EBUSY,
                                                "the driver %s has taken it, and its state is lost", driver);
                host->log(device, LUVFIO_LOG_WARNING, "taking it from the driver %s", driver);
                r = host->unbind(device);
                if (r < 0)
                        return host->set_reason(device, r, "it cannot be taken from the driver %s: %s",
                                                driver, strerror(-r));
        }

        r = host->bind(device, DRIVER);
        if (r == -ENOENT)
                return host->set_reason(device, r, "this kernel has no driver " DRIVER);
        /* Somebody else may have made the bus probe it meanwhile. */
        if (r < 0 && host->wait_driver(device, DRIVER, 0) < 0)
                return host->set_reason(device, r, "it cannot be bound to " DRIVER ": %s", strerror(-r));
        return 0;
}

static int vfio_pci_rebind(const struct luvfio_host *host, struct luvfio_device *device, const char *text)
{
        struct plan plan;
        int r;

        r = plan_parse(host, device, text, &plan);
        if (r < 0)
                return r;
        r = host->wait_path(device, "", WAIT_DEVICE_USEC);
        if (r < 0)
                return host->set_reason(device, -ENODEV, "it is not there any more");
        /* Before anything is done to it. */
        r = check_identity(host, device, &plan.identity);
        if (r >= 0)
                r = check_not_blocked(host, device);
        if (r < 0)
                return r;
        r = bind_driver(host, device, &plan);
        if (r < 0)
                return r;
        r = host->wait_path(device, "vfio-dev", WAIT_CDEV_USEC);
        if (r < 0)
                return host->set_reason(device, r, DRIVER " did not make a VFIO device of it");
        return 0;
}

static int check_bars(const struct luvfio_host *host, struct luvfio_device *device, const struct plan *plan)
{
        struct bar now[PCI_BARS];
        int r;

        r = read_bars(host, device, now);
        if (r < 0)
                return r;
        for (unsigned i = 0; i < PCI_BARS; i++) {
                const struct bar *was = &plan->bars[i];

                if (now[i].size != was->size || now[i].flags != was->flags)
                        return host->set_reason(device, -ESTALE,
                                                "its BAR %u has changed: 0x%llx bytes of type 0x%llx, it "
                                                "had 0x%llx of "
                                                "type 0x%llx",
                                                i, (unsigned long long) now[i].size,
                                                (unsigned long long) now[i].flags,
                                                (unsigned long long) was->size,
                                                (unsigned long long) was->flags);
                /* After a reset they are programmed anew, and may be elsewhere. */
                if (plan->promise != LUVFIO_PROMISE_RESET && now[i].address != was->address)
                        return host->set_reason(device, -ESTALE,
                                                "its BAR %u has moved from 0x%llx to 0x%llx", i,
                                                (unsigned long long) was->address,
                                                (unsigned long long) now[i].address);
        }
        return 0;
}

static int vfio_pci_verify(const struct luvfio_host *host, struct luvfio_device *device, const char *text)
{
        char driver[64], state[16], handler[64];
        struct plan plan;
        uint16_t command;
        int r;

        r = plan_parse(host, device, text, &plan);
        if (r >= 0)
                r = check_identity(host, device, &plan.identity);
        if (r >= 0)
                r = check_not_blocked(host, device);
        if (r >= 0)
                r = check_bars(host, device, &plan);
        if (r >= 0)
                r = is_driven(host, device, driver, sizeof(driver));
        if (r < 0)
                return r;
        if (r == 0)
                return host->set_reason(device, -ENODEV, "it has %s, not " DRIVER, driver);

        if (host->attr_read(device, "liveupdate/state", state, sizeof(state)) < 0 ||
            host->attr_read(device, "liveupdate/handler", handler, sizeof(handler)) < 0)
                return host->set_reason(device, -ENOENT, "this kernel does not know of live updates of it");
        if (strcmp(state, "incoming") != 0 || strcmp(handler, plan.handler) != 0)
                return host->set_reason(device, -ESTALE,
                                        "the kernel does not hold it for its machine: state %s, preserved "
                                        "as \"%s\", "
                                        "not incoming and \"%s\"",
                                        state, handler, plan.handler);

        if (plan.promise != LUVFIO_PROMISE_RESET) {
                r = config_read16(host, device, PCI_COMMAND, &command);
                if (r < 0)
                        return r;
                if (command != plan.command)
                        return host->set_reason(device, -ESTALE,
                                                "its command register is 0x%04x, it was 0x%04x: somebody "
                                                "has touched it",
                                                command, plan.command);
        }
        return 0;
}

/* Does as much as can be done, whatever of it fails, and says the last failure. The plan is not needed. */
static int vfio_pci_recover(const struct luvfio_host *host, struct luvfio_device *device, const char *text)
{
        char driver[64], reset[128];
        uint16_t command;
        int r, ret = 0;

        (void) text;
        r = host->driver(device, driver, sizeof(driver));
        if (r == -ENODEV)
                return 0; /* gone, which is safe */
        if (r >= 0 && strcmp(driver, DRIVER) != 0) {
                host->log(device, LUVFIO_LOG_INFO, "left alone, the host's driver %s has it", driver);
                return 0;
        }

        r = config_read16(host, device, PCI_COMMAND, &command);
        if (r >= 0)
                r = config_write16(host, device, PCI_COMMAND,
                                   (command & (uint16_t) ~PCI_COMMAND_MASTER) | PCI_COMMAND_INTX_DISABLE);
        if (r < 0)
                ret = r;
        r = config_msi_off(host, device);
        if (r < 0)
                ret = r;

        r = host->unbind(device);
        if (r < 0)
                ret = host->set_reason(device, r, "it cannot be taken from " DRIVER ": %s", strerror(-r));
        if (r >= 0 && host->attr_read(device, "reset_method", reset, sizeof(reset)) > 0) {
                r = host->attr_write(device, "reset", "1");
                if (r < 0)
                        ret = host->set_reason(device, r, "it cannot be reset: %s", strerror(-r));
        }
        r = host->driver_override(device, NULL);
        if (r < 0)
                ret = host->set_reason(device, r, "driver_override cannot be cleared: %s", strerror(-r));
        return ret;
}

static const struct luvfio_plugin_ops vfio_pci_ops = {
        .size = sizeof(vfio_pci_ops),
        .match = vfio_pci_match,
        .preflight = vfio_pci_preflight,
        .quiesced = vfio_pci_quiesced,
        .plan = vfio_pci_plan,
        .rebind = vfio_pci_rebind,
        .verify = vfio_pci_verify,
        .recover = vfio_pci_recover,
};

const struct luvfio_plugin luvfio_plugin_v1 = {
        .size = sizeof(luvfio_plugin_v1),
        .abi = LUVFIO_PLUGIN_ABI,
        .name = "vfio-pci",
        .ops = &vfio_pci_ops,
};
