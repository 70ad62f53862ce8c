/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "luo/fd-identify.h"
#include "report/timeline.h"
#include "util/macro.h"

/*
 * The documents that cross the jump. Host record: in the session "luvfio-host", token 0, and once more as
 * token 1: all machines are found by it, LUO cannot list sessions, and a retrieve that failed fails for
 * ever. Machine record: in the machine's own session, token (serial << 16). Each is one of util/document.h.
 */

#define LUVFIO_HOST_SESSION "luvfio-host"
#define LUVFIO_SESSION_PREFIX "luvfio-"
#define LUVFIO_HOST_TOKEN UINT64_C(0)
#define LUVFIO_HOST_COPY_TOKEN UINT64_C(1)
#define LUVFIO_MACHINE_TOKEN(serial) ((uint64_t) (serial) << 16)
#define LUVFIO_FDS_MAX 65535u /* in a machine: tokens serial << 16 | 1.. */
/* 1.. : serial 0 would have the host record's tokens. */
#define LUVFIO_SERIAL_MAX ((UINT64_C(1) << 47) - 1)
#define LUVFIO_PLAN_MAX ((size_t) 16 * 1024)

typedef struct FdRecord {
        char *name;
        FdKind kind;
        FdOutcome outcome;
        uint64_t token; /* rebuilt: may be 0 */
        uint64_t size;
        char *device; /* vfio: PCI address, which is among the machine's devices; else NULL */
} FdRecord;

typedef struct DeviceRecord {
        char *address;
        char *plugin;
        char *promise;
        char *plan; /* the plugin's own text */
} DeviceRecord;

typedef struct MachineRecord {
        char *name, *secret, *unit, *vmm, *session;
        uint64_t uid, generation, serial;
        uint64_t stopped_usec; /* first vCPU stopped: CLOCK_BOOTTIME of the old kernel */
        FdRecord *fds;
        size_t n_fds;
        DeviceRecord *devices;
        size_t n_devices;
} MachineRecord;

/* How the host record finds a machine when the machine's own record cannot be read. */
typedef struct SessionRecord {
        char *machine, *session;
        uint64_t serial;
} SessionRecord;

typedef struct HostRecord {
        char *update_id, *from_kernel, *to_kernel, *boot_id;
        Timeline timeline;
        char **units; /* to be started again after the drain; NULL-terminated */
        SessionRecord *sessions;
        size_t n_sessions;
} HostRecord;

MachineRecord *luv_machine_record_free(MachineRecord *m);
HostRecord *luv_host_record_free(HostRecord *h);
DEFINE_CLEANUP(MachineRecord *, luv_machine_record_free);
DEFINE_CLEANUP(HostRecord *, luv_host_record_free);

/*
 * A new sealed memfd with the document. It is read back first: what would be refused after the jump is
 * refused before it, with -EINVAL, and a sentence in *ret_reason, if not NULL.
 */
int luv_host_record_write(const HostRecord *h, int *ret_fd);
int luv_machine_record_write(const MachineRecord *m, int *ret_fd);

/*
 * Reads and validates. -EBADMSG: damaged (magic, length, checksum, JSON); -EPROTONOSUPPORT: written by a
 * version that says we cannot read it. *ret_reason is a sentence, the caller's to free, set on failure.
 */
int luv_host_record_read(int fd, HostRecord **ret, char **ret_reason);
int luv_machine_record_read(int fd, MachineRecord **ret, char **ret_reason);
