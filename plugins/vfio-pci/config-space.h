/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef CONFIG_SPACE_H
#define CONFIG_SPACE_H

#include <luvfio/plugin.h>

/* What the plugin has to know of PCI. All functions give the reason themselves when they fail. */

#define PCI_COMMAND 0x04u
#define PCI_COMMAND_MASTER 0x4u
#define PCI_COMMAND_INTX_DISABLE 0x400u

#define PCI_BARS 6

/* Where a device's MSI and MSI-X are controlled, 0 if it has none; whether they are on, and whether the
 * device holds all of them back. */
struct msi_state {
        unsigned msi_control, msix_control;
        int msi_on, msix_on;
        int msi_masked, msix_masked;
};

struct identity {
        uint32_t vendor, device, subsystem_vendor, subsystem_device, class_code, revision;
        uint64_t serial; /* 0: none */
};

struct bar {
        uint64_t address, size, flags; /* size 0: there is none */
};

int config_read16(const struct luvfio_host *host, struct luvfio_device *device, unsigned offset,
                  uint16_t *ret);
int config_write16(const struct luvfio_host *host, struct luvfio_device *device, unsigned offset,
                   uint16_t value);

/* -EBADMSG if the list of capabilities is damaged, so that nothing can be said. */
int config_msi_state(const struct luvfio_host *host, struct luvfio_device *device, struct msi_state *ret);

/* Turn MSI and MSI-X off at the device. */
int config_msi_off(const struct luvfio_host *host, struct luvfio_device *device);

int read_identity(const struct luvfio_host *host, struct luvfio_device *device, struct identity *ret);
int read_bars(const struct luvfio_host *host, struct luvfio_device *device, struct bar ret[PCI_BARS]);

/*
 * Whether a hotplug event of the port that the device is plugged into waits to be handled: then the device
 * may be about to go. 0 also if the port has no hotplug that the kernel handles.
 */
int hotplug_pending(const struct luvfio_host *host, struct luvfio_device *device);

#endif
