/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "luo/luo.h"

/* Between luo.c, which keeps sessions, calls and their order, and the two backends. */

typedef enum LuoOp {
        LUO_OP_CREATE,
        LUO_OP_RETRIEVE_SESSION,
        LUO_OP_PRESERVE,
        LUO_OP_RETRIEVE,
        LUO_OP_FINISH,
        _LUO_OP_MAX,
        _LUO_OP_INVALID = -EINVAL,
} LuoOp;

/* LUO's own limit, with the 0 byte. */
#define LUO_SESSION_NAME_SIZE 64u

typedef struct LuoBackendOps {
        int (*init)(Luo *l, int handed_fd, const char *fail);
        void (*done)(Luo *l);
        int (*probe)(Luo *l);
        int (*read_abi)(Luo *l, char **ret);
        /* Opens the device and makes or retrieves a session: its fd. -EBUSY is tried again. */
        int (*open_session)(Luo *l, bool incoming, const char *name);
        /* A session object has its fd, from open_session or the fd store: verify, add backend's data. */
        int (*session_attach)(LuoSession *s);
        void (*session_detach)(LuoSession *s);
        /* Starts a session's call, which ends in luv_luo_call_complete(), at once or later. */
        void (*start)(LuoCall *c);
        int (*jump)(Luo *l, char *const *argv, const int *kept, char *const *kept_names, size_t n_kept);
} LuoBackendOps;

extern const LuoBackendOps luv_luo_device_ops;
extern const LuoBackendOps luv_luo_simulated_ops;

struct Luo {
        unsigned n_ref;
        sd_event *event;
        LuoBackend backend;
        const LuoBackendOps *ops;
        void *data; /* backend's */

        LuoCall *calls;                    /* all that are not freed */
        LuoCall *ready_first, *ready_last; /* to be started, one an iteration of the event loop */
        sd_event_source *ready_source;
};

struct LuoSession {
        unsigned n_ref; /* callers', and one of each call whose callback is to come */
        Luo *luo;
        char *name;
        int session_fd;
        bool incoming;
        char *cgroup;
        void *data; /* backend's */

        LuoCall *first, *last; /* in order; the first is ready or running */
};

struct LuoCall {
        Luo *luo; /* NULL once that is gone */
        LuoCall *next, *previous;
        LuoSession *session; /* NULL: open_session, or the session is gone */
        LuoCall *queue_next, *ready_next;

        LuoOp op;
        char *name;
        int fd;
        uint64_t token;
        uint64_t deadline;

        LuoDone done;
        LuoFdDone fd_done;
        LuoSessionDone session_done;
        void *userdata;

        unsigned n_ref; /* the caller's, one until the callback is over, one while the backend has it */
        bool pending;   /* callback is to come */
        bool queued;    /* in its session's queue */
        bool ready;
        bool running; /* the backend has it */

        unsigned n_busy;
        sd_event_source *deadline_source, *busy_source;
};

/* Ends a call that the backend was given by start. FD is taken. The session may be gone afterwards. */
void luv_luo_call_complete(LuoCall *c, int error, int fd);

/* A seam for tests: what the device backend asks of the kernel. NULL: the kernel itself. */
typedef struct LuoDeviceSyscalls {
        int (*open)(const char *path, int flags);
        int (*ioctl)(int fd, unsigned long request, void *argument);
        int (*kexec_loaded)(void);
        int (*reboot)(int command);
        const char *worker; /* path of the program */
} LuoDeviceSyscalls;

void luv_luo_device_set_syscalls(const LuoDeviceSyscalls *syscalls);
