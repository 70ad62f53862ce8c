/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "util/macro.h"

/* Whether QEMU resets a VFIO device with others at each reset of its board. */

/*
 * By the first 256 bytes of the device's config space, and by whether VFIO_DEVICE_RESET works. QEMU trusts
 * the reset of one that has a function level reset, or nothing better than a reset of its bus.
 */
bool luv_vfio_is_reset_with_board(const uint8_t config[static 256], bool reset_works);
/* The same of an open device. -errno. */
int luv_vfio_ask_reset_with_board(int device_fd);
