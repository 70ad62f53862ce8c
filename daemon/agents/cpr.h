/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "util/macro.h"

/*
 * What QEMU hands from one process to the next by its migration mode cpr-transfer, as it travels on the
 * channel "cpr" (of QEMU 10.1 and later): file descriptors by name and number, and of each VFIO device the
 * ids that it has in its iommufd. QEMU finds them by name, so that their order means nothing.
 *
 * On the wire, big endian: u32 magic, u32 version; for each fd u8 1, u32 length, name with its 0 byte, i32
 * id, one byte that carries the fd; u8 0. Then sections, of which one is known: u8 5, u8 length, name, u32
 * version; for each device u8 1, u32 length, name with its 0 byte, i32 device id, u32 address space, u32
 * page table; u8 0. The end of the stream is its end.
 */

#define CPR_FDS_MAX 4096u
#define CPR_DEVICES_MAX 256u
#define CPR_NAME_MAX 255u /* without its 0 byte */
#define CPR_SIZE_MAX ((size_t) 2 * 1024 * 1024)

typedef struct CprFd {
        char *name;
        int32_t id;
        int fd;
} CprFd;

/* Of a VFIO device: how its iommufd knows it, its address space and its page table. */
typedef struct CprDevice {
        char *name;
        int32_t devid;
        uint32_t ioas, hwpt;
} CprDevice;

typedef struct CprState {
        CprFd *fds;
        size_t n_fds;
        CprDevice *devices;
        size_t n_devices;
} CprState;

/* Closes the fds. */
void luv_cpr_state_done(CprState *s);
#define _cleanup_cpr_state_ _cleanup_(luv_cpr_state_done)

/* FD is taken on success. -ENOMEM, -E2BIG. */
int luv_cpr_add_fd(CprState *s, const char *name, int32_t id, int *fd);
int luv_cpr_add_device(CprState *s, const CprDevice *device);
/* NULL: there is none. */
CprFd *luv_cpr_find_fd(const CprState *s, const char *name, int32_t id);

/*
 * Of DATA, with the fds that came with it in that order; those that *RET has afterwards are -1 in FDS.
 * -EBADMSG: it is no such stream; -EPROTONOSUPPORT: of another version, or with a section that is not known.
 * With a sentence.
 */
int luv_cpr_parse(const void *data, size_t size, int *fds, size_t n_fds, CprState *ret, char **ret_reason);

/* Everything up to the end of the stream. -ETIMEDOUT; and as luv_cpr_parse(). The socket may block or not.
 */
int luv_cpr_receive(int socket_fd, uint64_t deadline, CprState *ret, char **ret_reason);
/* And the end of the stream. -ETIMEDOUT, -EPIPE, -errno. The fds stay the caller's. */
int luv_cpr_send(int socket_fd, const CprState *s, uint64_t deadline);
