/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-event.h>

#include "util/macro.h"

/*
 * The Live Update Orchestrator, asynchronously, behind one API with two backends: the kernel's
 * /dev/liveupdate, and a simulated one in the daemon's own memory that keeps LUO's rules (one opener,
 * tokens unique in a session, a file in one session only, freeze all or nothing, FINISH in reverse order
 * of preservation, a failed retrieve is sticky) and whose jump is a re-exec that keeps the fds.
 *
 * Device backend: /dev/liveupdate is opened for one ioctl and closed; EBUSY is tried again by timer until
 * the deadline. Whatever may block or charge memory (preserve, retrieve, finish) is done by a worker
 * process in the cgroup given, one worker a session at most, calls of a session in order.
 *
 * Every call takes a deadline in CLOCK_BOOTTIME microseconds (0: none) and ends in exactly one callback,
 * never from within the call itself. The LuoCall is the caller's, to be freed before or after (or in) the
 * callback; before, it cancels the callback, not always the work. RET may be NULL: then the call frees
 * itself. Errors are -errno of the syscall; -ETIME: the deadline; -EPIPE: the worker died, which loses
 * nothing: the call can be made again.
 */

typedef struct Luo Luo;
typedef struct LuoSession LuoSession;
typedef struct LuoCall LuoCall;

typedef enum LuoBackend {
        LUO_BACKEND_DEVICE,
        LUO_BACKEND_SIMULATED,
        _LUO_BACKEND_MAX,
        _LUO_BACKEND_INVALID = -EINVAL,
} LuoBackend;

const char *luv_luo_backend_to_string(LuoBackend b);

/* FD is the callee's, or negative. */
typedef void (*LuoFdDone)(int error, int fd, void *userdata);
/* SESSION is the callee's reference, or NULL. */
typedef void (*LuoSessionDone)(int error, LuoSession *session, void *userdata);
typedef void (*LuoDone)(int error, void *userdata);

/*
 * Simulated backend: HANDED_FD is the fd of an earlier incarnation's state (luv_luo_handed_fd(), taken
 * over) or negative; FAIL is a list "operation:n[+][:errno],..." (probe, create, preserve, freeze,
 * retrieve_session, retrieve, finish), whose n-th call fails, and with + all later ones (default EIO; EBUSY
 * of create and retrieve_session is a busy device: tried again), or NULL; it is counted on over the jump.
 * With $LUVFIO_SIMULATED_LOG every operation is written to that file, a line each, in order. Device backend:
 * all ignored.
 */
#define LUVFIO_HANDED_ENV "LUVFIO_SIMULATED_STATE"
/* The fd that a simulated jump left for this incarnation, or -ENOENT; works once. */
int luv_luo_handed_fd(void);
int luv_luo_new(sd_event *event, LuoBackend backend, int handed_fd, const char *fail, Luo **ret);
Luo *luv_luo_ref(Luo *l);
Luo *luv_luo_unref(Luo *l);
DEFINE_CLEANUP(Luo *, luv_luo_unref);
LuoBackend luv_luo_get_backend(Luo *l);

/* 0 if a session could be made now; -ENOENT no LUO in this kernel, -EBUSY, -EIO deserialisation failed. */
int luv_luo_probe(Luo *l);
/* The live-update ABIs the running kernel writes and reads (text, see kexec/abi.h); caller frees. -ENOENT.
 */
int luv_luo_read_abi(Luo *l, char **ret);

LuoCall *luv_luo_call_free(LuoCall *c);
DEFINE_CLEANUP(LuoCall *, luv_luo_call_free);

/* Outgoing: -EEXIST while a session of that name lives (closing is asynchronous in PID 1). */
int luv_luo_session_create(Luo *l, const char *name, uint64_t deadline, LuoSessionDone done, void *userdata,
                           LuoCall **ret);
/* Incoming: -ENOENT no such session, -EINVAL somebody has it. */
int luv_luo_session_retrieve(Luo *l, const char *name, uint64_t deadline, LuoSessionDone done,
                             void *userdata, LuoCall **ret);
/* A session fd that came back from the fd store; takes FD if it succeeds. -EINVAL: not this session's fd. */
int luv_luo_session_adopt(Luo *l, const char *name, int fd, bool incoming, LuoSession **ret);
LuoSession *luv_luo_session_ref(LuoSession *s);
/* The last reference closes our fd, and a moment later a worker's; other holders (the fd store) keep the
 * session. */
LuoSession *luv_luo_session_unref(LuoSession *s);
DEFINE_CLEANUP(LuoSession *, luv_luo_session_unref);
const char *luv_luo_session_get_name(LuoSession *s);
int luv_luo_session_get_fd(LuoSession *s);

/*
 * The cgroup (path as in /proc/PID/cgroup) in which a worker preserves and retrieves, so that memory is
 * charged to it. NULL, as at first, or a frozen cgroup: preserve and retrieve are done by this process, at
 * once: right for the small records and for nothing else. FINISH is always a worker's.
 */
int luv_luo_session_set_cgroup(LuoSession *s, const char *cgroup);

/* FD stays the caller's; the kernel takes a reference of its own. -EEXIST token, -EBUSY file held already.
 */
int luv_luo_session_preserve(LuoSession *s, int fd, uint64_t token, uint64_t deadline, LuoDone done,
                             void *userdata, LuoCall **ret);
/* -EAGAIN: not yet, try again (the device has no driver). */
int luv_luo_session_retrieve_fd(LuoSession *s, uint64_t token, uint64_t deadline, LuoFdDone done,
                                void *userdata, LuoCall **ret);
int luv_luo_session_finish(LuoSession *s, uint64_t deadline, LuoDone done, void *userdata, LuoCall **ret);

/*
 * Jump. Returns only on failure, with -errno of reboot(2) (device) or of freeze (simulated); nothing is
 * frozen then; -EINVAL: no image is loaded, -ENOEXEC: one that kexec_load(2) loaded, which would lose every
 * session. KEPT are fds that the simulated backend carries to the next incarnation (listening sockets),
 * which finds them in LISTEN_FDS under KEPT_NAMES (no colon in them); ARGV is its command line, with which
 * /proc/self/exe is executed.
 */
int luv_luo_jump(Luo *l, char *const *argv, const int *kept, char *const *kept_names, size_t n_kept);
