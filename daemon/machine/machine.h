/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sys/types.h>
#include <systemd/sd-event.h>

#include "luo/fd-identify.h"
#include "luo/luo.h"
#include "restore/manifest.h"
#include "util/macro.h"

/* Registered machines: who owns them, what is held of them, where they are. Knows of no socket and no
 * update. */

typedef enum MachineState {
        MACHINE_RUNNING,
        MACHINE_PREPARING,
        MACHINE_PREPARED,
        MACHINE_QUIESCING,
        MACHINE_QUIESCED,
        MACHINE_COMMITTED,
        MACHINE_ABORTING,
        MACHINE_RESTORING,
        MACHINE_RESUMING,
        MACHINE_STRANDED,
        _MACHINE_STATE_MAX,
        _MACHINE_STATE_INVALID = -EINVAL,
} MachineState;

typedef enum MachineEvent {
        MACHINE_EVENT_ATTACHED,
        MACHINE_EVENT_PREPARE,
        MACHINE_EVENT_QUIESCE,
        MACHINE_EVENT_COMMIT,
        MACHINE_EVENT_ABORT,
        MACHINE_EVENT_RESUME,
        MACHINE_EVENT_FINISHED,
        _MACHINE_EVENT_MAX,
        _MACHINE_EVENT_INVALID = -EINVAL,
} MachineEvent;

const char *luv_machine_state_to_string(MachineState s);
MachineState luv_machine_state_from_string(const char *s);
const char *luv_machine_event_to_string(MachineEvent e);
MachineEvent luv_machine_event_from_string(const char *s);

typedef struct MachineRegistry MachineRegistry;
typedef struct Machine Machine;
typedef struct MachineFd MachineFd;
typedef struct UserQuota UserQuota;

struct MachineFd {
        Machine *machine;
        MachineFd *next_same_hash; /* registry's table of files */
        char *name;
        FdKind kind;
        FdOutcome outcome;
        uint64_t token;
        FdIdentity identity;
        int fd;         /* our own; negative while it is in an incoming session only */
        bool preserved; /* in the outgoing session */
};

typedef struct MachineDevice {
        char *address;
        char *plugin; /* that answers for it, once asked */
        char *promise;
        char *plan;
        char *reason; /* what is wrong with it */
} MachineDevice;

/* A VMM, or what speaks for it. */
typedef struct MachineOwner {
        uid_t uid;
        char *unit; /* NULL: in none */
        pid_t pid;
        int pidfd;    /* negative: none */
        char *cgroup; /* as in /proc/PID/cgroup, NULL: in no unified one */
} MachineOwner;

void luv_machine_owner_done(MachineOwner *o);

/* What speaks against a live update of the machine, in its VMM's words. */
typedef struct MachineBlocker {
        char *message;
        char *remedy; /* or NULL */
} MachineBlocker;

#define MACHINE_BLOCKERS_MAX 64u

MachineBlocker *luv_machine_blockers_free(MachineBlocker *blockers, size_t n);

struct Machine {
        MachineRegistry *registry;
        char *name, *secret, *vmm;
        MachineOwner owner;
        uint64_t generation; /* jumps made */
        uint64_t tries;      /* outgoing sessions made since then */
        uint64_t serial;     /* this boot's number of it, upper part of its tokens */
        MachineState state;
        char *reason; /* why it is stranded or held an update up */

        MachineFd **fds; /* in order of preservation */
        size_t n_fds, n_fds_allocated;
        uint64_t last_token; /* lower part of the token given out last */
        MachineDevice *devices;
        size_t n_devices;
        char **missing; /* held before a restart of the daemon, not handed over again yet */
        MachineBlocker *blockers;
        size_t n_blockers;

        bool attached; /* somebody watches */
        bool served;   /* the process that registered it watches, or did: it is the VMM itself */
        bool exited;   /* the owner's process is gone */
        bool graced;   /* and had its grace */
        sd_event_source *exit_source;
        sd_event_source *grace_source;

        LuoSession *session; /* outgoing before the jump, incoming after it */
        char *session_name;
        uint64_t stopped_usec;    /* first vCPU: outgoing clock */
        uint64_t registered_usec; /* VMM back: incoming clock */
        uint64_t running_usec;    /* last vCPU: incoming clock */

        void *update;  /* what the update keeps of it */
        void *watcher; /* the connection that watches it */
};

typedef struct MachineQuota {
        uint64_t machines, fds, bytes; /* each user's */
} MachineQuota;

#define LUVFIO_QUOTA_DEFAULT ((MachineQuota) { .machines = 4096, .fds = 65536, .bytes = UINT64_C(64) << 40 })

typedef struct MachineCallbacks {
        void (*state_changed)(Machine *m, MachineState old, void *userdata);
        /* The owner's process ended, or its grace did; the registry itself does nothing about it. */
        void (*exited)(Machine *m, void *userdata);
        /* Before it is freed. */
        void (*forgotten)(Machine *m, void *userdata);
} MachineCallbacks;

/* FOLDER: where machines are noted for a restart of the daemon, or NULL. EVENT may be NULL: exits are not
 * seen. */
int luv_machine_registry_new(sd_event *event, const char *folder, const MachineQuota *quota,
                             const MachineCallbacks *callbacks, void *userdata, MachineRegistry **ret);
MachineRegistry *luv_machine_registry_free(MachineRegistry *r);
DEFINE_CLEANUP(MachineRegistry *, luv_machine_registry_free);

size_t luv_machine_registry_size(MachineRegistry *r);
/* By name; I < size. */
Machine *luv_machine_registry_at(MachineRegistry *r, size_t i);
Machine *luv_machine_registry_find(MachineRegistry *r, const char *name);
const MachineQuota *luv_machine_registry_quota(MachineRegistry *r);

/*
 * A new machine, in state running (or STATE), with a fresh secret. Takes over OWNER. -EEXIST; -EDQUOT: the
 * user has as many machines as he may (with STATE running only: what comes over a jump is not refused).
 */
int luv_machine_new(MachineRegistry *r, const char *name, MachineOwner *owner, MachineState state,
                    Machine **ret);
/* As the old kernel's daemon wrote it down; the machine exists in state restoring. */
int luv_machine_set_record(Machine *m, const MachineRecord *record);
/* Closes all fds. Returns NULL. */
Machine *luv_machine_forget(Machine *m);

void luv_machine_set_state(Machine *m, MachineState state);
_printf_(2, 3) int luv_machine_set_reason(Machine *m, const char *format, ...);
/* The VMM speaks again, perhaps from another process: takes over OWNER and watches its process. */
int luv_machine_set_owner(Machine *m, MachineOwner *owner);
/* Whether PEER may speak for M: the same user and unit, or root. SIMULATED: no unit equals no unit. */
bool luv_machine_is_owner(const Machine *m, const MachineOwner *peer, bool simulated);
/* In constant time. */
bool luv_machine_is_secret(const Machine *m, const char *secret);
/* Whether the VMM that registered it lives. */
bool luv_machine_is_alive(const Machine *m);
/* exited() is called again after a while. */
int luv_machine_grant_grace(Machine *m);

/* Takes over N of them, in place of those before. */
void luv_machine_set_blockers(Machine *m, MachineBlocker *blockers, size_t n);

MachineFd *luv_machine_find_fd(Machine *m, const char *name);
/* Whoever holds the same file as FD, which has that identity; of any machine; NULL. */
MachineFd *luv_machine_registry_find_file(MachineRegistry *r, const FdIdentity *identity, int fd);
/*
 * Holds FD (taken on success) under NAME, or replaces what is held there. -EDQUOT: *ret_what and *ret_limit
 * say what there is too much of. -EBUSY: NAME is in a session by now and is another file. -EEXIST:
 * *ret_other has the file already.
 */
int luv_machine_hold(Machine *m, const char *name, FdKind kind, FdOutcome outcome,
                     const FdIdentity *identity, int *fd, MachineFd **ret, MachineFd **ret_other,
                     const char **ret_what, uint64_t *ret_limit);
void luv_machine_drop_fd(Machine *m, MachineFd *f);
/* FD came back from the incoming session and is the machine's now. */
void luv_machine_set_retrieved(Machine *m, MachineFd *f, const FdIdentity *identity, int fd);
/*
 * The VMM that retrieved M's devices is gone: the kernel gives a device out unbound again, as the next VMM
 * needs it, once nobody else has it open.
 */
void luv_machine_release_devices(Machine *m);
uint64_t luv_machine_memory(const Machine *m);

MachineDevice *luv_machine_find_device(Machine *m, const char *address);
/* As luv_fd_preserved(), of the device that M has at ADDRESS, by what M has handed over now. */
uint64_t luv_machine_device_preserved(const Machine *m, const char *address);
/* What becomes of F, which M holds, by what M has handed over now. */
FdOutcome luv_machine_fd_outcome(const Machine *m, const MachineFd *f);

/* Noted in the registry's folder; found there again after a restart of the daemon. */
int luv_machine_note(Machine *m);
/* Machines of an earlier run of this daemon whose VMMs live: known again, unattached, no fds. */
int luv_machine_registry_load(MachineRegistry *r);
void luv_machine_registry_clear_notes(MachineRegistry *r);
