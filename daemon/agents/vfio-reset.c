/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "agents/vfio-reset.h"

#define CAPABILITIES_MAX 48

static unsigned word_at(const uint8_t *p)
{
        return p[0] | (unsigned) p[1] << 8;
}

bool luv_vfio_is_reset_with_board(const uint8_t config[static 256], bool reset_works)
{
        bool by_function = false, by_power = false;
        unsigned at = word_at(config + PCI_STATUS) & PCI_STATUS_CAP_LIST ? config[PCI_CAPABILITY_LIST] : 0;

        for (int n = 0; n < CAPABILITIES_MAX; n++) {
                at &= ~3u;
                if (at < PCI_STD_HEADER_SIZEOF || at > 256 - 8)
                        break;
                if (config[at] == PCI_CAP_ID_EXP)
                        by_function |= word_at(config + at + PCI_EXP_DEVCAP + 2) & PCI_EXP_DEVCAP_FLR >> 16;
                else if (config[at] == PCI_CAP_ID_AF)
                        by_function |= (config[at + PCI_AF_CAP] & (PCI_AF_CAP_TP | PCI_AF_CAP_FLR)) ==
                                       (PCI_AF_CAP_TP | PCI_AF_CAP_FLR);
                else if (config[at] == PCI_CAP_ID_PM)
                        by_power |= !(word_at(config + at + PCI_PM_CTRL) & PCI_PM_CTRL_NO_SOFT_RESET);
                at = config[at + PCI_CAP_LIST_NEXT];
        }
        return !reset_works || (by_power && !by_function);
}

int luv_vfio_ask_reset_with_board(int device_fd)
{
        struct vfio_device_info info = { .argsz = sizeof(info) };
        struct vfio_region_info region = { .argsz = sizeof(region), .index = VFIO_PCI_CONFIG_REGION_INDEX };
        uint8_t config[256];
        ssize_t n;

        if (ioctl(device_fd, VFIO_DEVICE_GET_INFO, &info) < 0 ||
            ioctl(device_fd, VFIO_DEVICE_GET_REGION_INFO, &region) < 0)
                return negative_errno();
        n = pread(device_fd, config, sizeof(config), (off_t) region.offset);
        if (n < 0)
                return negative_errno();
        return n < (ssize_t) sizeof(config)
                               ? -EIO
                               : luv_vfio_is_reset_with_board(config, info.flags & VFIO_DEVICE_FLAGS_RESET);
}
