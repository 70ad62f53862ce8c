/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-event.h>

#include "luo/fd-store.h"
#include "luo/luo.h"
#include "machine/machine.h"
#include "plugin/plugin-client.h"
#include "preflight/preflight.h"
#include "report/report.h"
#include "util/macro.h"

/*
 * An update from its first check to the last machine that runs again. One at a time. Every change of state
 * goes through luv_update_transition(); every step before the jump notes its undo before it acts, so that
 * giving up is one way back from anywhere: the undos, last first.
 */

typedef enum UpdateState {
        UPDATE_IDLE,
        UPDATE_CHECKING,
        UPDATE_STAGING,
        UPDATE_STAGED,
        UPDATE_DRAINING,
        UPDATE_QUIESCING,
        UPDATE_HANDING_OVER,
        UPDATE_RESTORING,
        UPDATE_REBINDING,
        UPDATE_RESUMING,
        UPDATE_FINISHING,
        _UPDATE_STATE_MAX,
        _UPDATE_STATE_INVALID = -EINVAL,
} UpdateState;

const char *luv_update_state_to_string(UpdateState s);
UpdateState luv_update_state_from_string(const char *s);

typedef struct Update Update;

/* The fds are taken over, the rest is copied. */
typedef struct UpdateRequest {
        bool jump;                /* go on after staging */
        bool dry_run;             /* go back after staging */
        bool cold;                /* reboot cold if there is no other way */
        uint64_t deadline_usec;   /* for all VMMs to stop; 0: default */
        int kernel_fd, initrd_fd; /* or negative */
        const char *cmdline;      /* NULL: the running kernel's */
        char *const *sacrifice;
} UpdateRequest;

#define LUVFIO_DEADLINE_DEFAULT_USEC (10 * USEC_PER_SEC)
#define LUVFIO_DEADLINE_MAX_USEC (3600 * USEC_PER_SEC)
#define LUVFIO_CMDLINE_MAX 2047u

typedef struct UpdateProgress {
        UpdateState state;
        const char *update_id;
        const char *message;
        const char *machine;
        MachineState machine_state; /* or invalid */
        uint64_t done, total;       /* total 0: not counted */
        const Report *report;
} UpdateProgress;

typedef enum UpdateEnd {
        UPDATE_END_STAGED,
        UPDATE_END_DRY_RUN,
        UPDATE_END_BLOCKED,
        UPDATE_END_BAD_KERNEL,
        UPDATE_END_ABORTED,
        UPDATE_END_DONE,
} UpdateEnd;

/* How what a caller asked for ended. */
typedef struct UpdateOutcome {
        UpdateEnd end;
        const char *update_id;
        UpdateState state; /* in which it failed */
        const char *reason, *machine;
        const Findings *findings;
        const Report *report;
} UpdateOutcome;

typedef struct UpdateCallbacks {
        void (*progress)(const UpdateProgress *p, void *userdata);
        void (*ended)(const UpdateOutcome *o, void *userdata);
        /* A VMM is to be told something; nobody may be listening. */
        void (*event)(Machine *m, MachineEvent event, const char *update_id, uint64_t remaining_usec,
                      const char *reason, void *userdata);
        /* After the jump: it is known now which machines came along, or M's way is settled (NULL: all). */
        void (*settled)(Machine *m, void *userdata);
        /* Last thing before the jump: nothing is sent or received after that. */
        void (*jumping)(void *userdata);
        /* Reasons, if any, of who forbids updates. */
        void (*inhibitors)(PreflightFacts *facts, void *userdata);
} UpdateCallbacks;

typedef struct UpdateConfig {
        sd_event *event;
        Luo *luo;
        FdStore *store;
        PluginManager *plugins;
        MachineRegistry *machines;
        bool simulated;
        const char *runtime_dir, *state_dir;
        uint64_t resume_deadline_usec;
        char *const *argv; /* of the simulated jump */
        const int *kept;
        char *const *kept_names;
        size_t n_kept;
} UpdateConfig;

/* CONFIG's pointers must outlive the update. */
int luv_update_new(const UpdateConfig *config, const UpdateCallbacks *callbacks, void *userdata,
                   Update **ret);
Update *luv_update_free(Update *u);
DEFINE_CLEANUP(Update *, luv_update_free);

/* Legal pairs only: -EPROTO. Does nothing but change the state and tell of it. */
int luv_update_transition(Update *u, UpdateState to);
bool luv_update_transition_is_legal(UpdateState from, UpdateState to);

UpdateState luv_update_state(const Update *u);
const char *luv_update_id(const Update *u); /* NULL: idle */
/* Whether machines may be registered now; if not they would be lost at the jump. */
bool luv_update_takes_machines(const Update *u);

/*
 * First thing after start. What an earlier run of the daemon left before the jump is rolled back; else
 * whatever came over a jump is restored. JUMPED: this run was made by a simulated jump.
 */
int luv_update_start(Update *u, bool jumped);
/* False until it is known which machines came over the jump, if any. */
bool luv_update_knows_machines(const Update *u);
/* Whether the record of what came over is lost for good, so that a new machine of this name may have been in
 * it. */
bool luv_update_may_be_lost(const Update *u, const char *name);
/* Strands it for that; Discard lets it start afresh. */
int luv_update_strand_lost(Update *u, Machine *m);

/* Runs all checks. DONE is called once, never from within. */
typedef struct UpdateCheck UpdateCheck;
typedef void (*UpdateCheckDone)(int error, const Findings *findings, void *userdata);
int luv_update_check(Update *u, UpdateRequest *request, UpdateCheckDone done, void *userdata,
                     UpdateCheck **ret);
UpdateCheck *luv_update_check_free(UpdateCheck *c);
DEFINE_CLEANUP(UpdateCheck *, luv_update_check_free);

/* -EBUSY: one is under way; -ENOKEY: no kernel. Else it ends in ended(). */
int luv_update_begin(Update *u, UpdateRequest *request);
/* -EPROTO: there is nothing that could be given up. REASON is for people. Ends in ended() and state idle. */
int luv_update_abort(Update *u, const char *reason);

/* The VMM's answers. -EPROTO: not in this state. One that crossed with an abort is taken and means nothing.
 */
bool luv_update_is_late(const Machine *m);
int luv_update_prepared(Update *u, Machine *m);
int luv_update_quiesced(Update *u, Machine *m, uint64_t stopped_usec);
int luv_update_committed(Update *u, Machine *m);
/* M has new blockers, or none. */
void luv_update_blocked(Update *u, Machine *m);
/* Positive: DONE follows when nothing of the update is left of M. */
typedef void (*UpdateResumedDone)(Machine *m, void *userdata);
int luv_update_resumed(Update *u, Machine *m, uint64_t running_usec);

/* The VMM watches now (again), or no more. Sends what it has to do. */
void luv_update_attached(Update *u, Machine *m);
void luv_update_detached(Update *u, Machine *m);
/* After Register of a machine that is known. -ESTALE: it is stranded for good. */
int luv_update_returned(Update *u, Machine *m);
/* A file was handed over while an update is under way. */
void luv_update_held(Update *u, Machine *m, MachineFd *f);
/* Forgets a machine that runs, as its VMM wants it. */
void luv_update_withdraw(Update *u, Machine *m);
/* Registry's callbacks. */
void luv_update_machine_exited(Update *u, Machine *m);
void luv_update_machine_forgotten(Update *u, Machine *m);
void luv_update_machine_state_changed(Update *u, Machine *m, MachineState old);

/* -ENOENT no such file, -ENODATA it is rebuilt by the VMM; else DONE is called once. FD stays the update's.
 */
typedef struct UpdateRetrieve UpdateRetrieve;
typedef void (*UpdateRetrieveDone)(int error, const char *reason, const MachineFd *f, void *userdata);
int luv_update_retrieve(Update *u, Machine *m, const char *name, UpdateRetrieveDone done, void *userdata,
                        UpdateRetrieve **ret);
UpdateRetrieve *luv_update_retrieve_free(UpdateRetrieve *r);
DEFINE_CLEANUP(UpdateRetrieve *, luv_update_retrieve_free);

/* -EPROTO: not stranded. Else DONE is called once; the machine is gone then. */
typedef void (*UpdateDiscardDone)(int error, const char *reason, void *userdata);
int luv_update_discard(Update *u, Machine *m, UpdateDiscardDone done, void *userdata);

const Report *luv_update_last_report(const Update *u);
