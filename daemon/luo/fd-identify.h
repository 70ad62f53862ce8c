/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "util/macro.h"

/* What a received file descriptor is. Nothing a client says of it is believed before this was asked. */

typedef enum FdKind {
        FD_KIND_MEMFD,
        FD_KIND_IOMMUFD,
        FD_KIND_VFIO,
        FD_KIND_STATE,
        _FD_KIND_MAX,
        _FD_KIND_INVALID = -EINVAL,
} FdKind;

typedef enum FdOutcome {
        FD_OUTCOME_PRESERVED,
        FD_OUTCOME_RESET,
        FD_OUTCOME_REBUILT,
        FD_OUTCOME_RUNNING,
        _FD_OUTCOME_MAX,
        _FD_OUTCOME_INVALID = -EINVAL,
} FdOutcome;

const char *luv_fd_kind_to_string(FdKind k);
FdKind luv_fd_kind_from_string(const char *s);
const char *luv_fd_outcome_to_string(FdOutcome o);
FdOutcome luv_fd_outcome_from_string(const char *s);

typedef struct FdIdentity {
        FdKind kind;        /* MEMFD, IOMMUFD or VFIO; a state is a memfd with another purpose */
        uint64_t dev, ino;  /* identity of the file; all iommufds have the same pair: see luv_fd_same() */
        uint64_t size;      /* memfd: bytes */
        uint64_t allocated; /* memfd: bytes that have pages */
        char device[16];    /* vfio: PCI address, else empty */
} FdIdentity;

/*
 * Looks at FD with fstat, fdinfo, sysfs and probing ioctls that change nothing. With SIMULATED, memfds
 * named "luvfio-sim:iommufd" and "luvfio-sim:vfio:<pci address>" stand for the real thing; with "+preserved"
 * behind it, for one that the kernel preserves; with "+running" behind the address, for a device that runs
 * on and whose iommufd is not preserved. 0; -EOPNOTSUPP if it is of no kind that can be preserved
 * (*ret_reason says what it is, caller frees); -EBADF if it is no open fd.
 */
int luv_fd_identify(int fd, bool simulated, FdIdentity *ret, char **ret_reason);

/*
 * 1 if both are the same open file (a dup, or passed by a socket), 0 if not. Two opens of /dev/iommu look
 * the same to fstat and are not, so the kernel is asked (kcmp). -EBADF.
 */
int luv_fd_same(int a, int b);

/*
 * What this kernel's live update preserves of the device of the VFIO file FD, as it is used now:
 * LUVFIO_PRESERVED_* of <luvfio/plugin.h>. FD_PRESERVED_UNKNOWN if the kernel does not say.
 */
#define FD_PRESERVED_UNKNOWN UINT64_MAX
uint64_t luv_fd_preserved(int fd);
/*
 * Has the kernel and the device of the VFIO file FD hold back the interrupts that are on, or let them go
 * again. -EOPNOTSUPP or -ENOTTY: it has none on that can be held back.
 */
int luv_fd_latch_interrupts(int fd, bool latch);
/* The device goes on doing DMA, from where it is. */
bool luv_fd_preserved_running(uint64_t preserved);
/* The names of those bits that are set in PRESERVED, or of those that are not; a new list, empty if not
 * known. */
int luv_fd_preserved_to_strv(uint64_t preserved, bool set, char ***ret);

/* The same for people, as "owner, state"; "nothing". NULL if out of memory. */
char *luv_fd_preserved_list(uint64_t preserved, bool set);

/*
 * Why the iommufd FD cannot be preserved as it is used now, by the kernel's word (a new string; the object
 * and what is wrong with it). -ENOENT: nothing is known to be wrong.
 */
int luv_iommufd_blocker(int fd, char **ret);

/* What becomes of a device of which that is preserved, as luv_fd_preserved(). */
FdOutcome luv_device_outcome(uint64_t preserved);

/* What becomes of the file FD, identified as of that KIND, in the next live update; of a device, together
 * with its iommufd. */
FdOutcome luv_fd_outcome(FdKind kind, int fd);
