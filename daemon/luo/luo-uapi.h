/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <linux/ioctl.h>

#include "util/macro.h"

/*
 * The kernel's live update interface, written down from its documentation: the headers that Debian 13
 * compiles against are older than it is.
 */

#define LUO_DEVICE "/dev/liveupdate"
#define LUO_ABI_FILE "/sys/kernel/liveupdate/abi"

typedef struct LuoUapiSession {
        uint32_t size;
        int32_t fd;
        uint8_t name[64];
} LuoUapiSession;

typedef struct LuoUapiFd {
        uint32_t size;
        int32_t fd;
        uint64_t token;
} LuoUapiFd;

typedef struct LuoUapiFinish {
        uint32_t size;
        uint32_t reserved;
} LuoUapiFinish;

typedef struct LuoUapiName {
        uint32_t size;
        uint32_t reserved;
        uint8_t name[64];
} LuoUapiName;

/* On the device. */
#define LUO_IOCTL_CREATE_SESSION _IO(0xba, 0x00)
#define LUO_IOCTL_RETRIEVE_SESSION _IO(0xba, 0x01)
/* On a session. */
#define LUO_IOCTL_PRESERVE_FD _IO(0xba, 0x40)
#define LUO_IOCTL_RETRIEVE_FD _IO(0xba, 0x41)
#define LUO_IOCTL_FINISH _IO(0xba, 0x42)
#define LUO_IOCTL_GET_NAME _IO(0xba, 0x43)
