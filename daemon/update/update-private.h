/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "preflight/units.h"
#include "restore/manifest.h"
#include "restore/restore.h"
#include "update/update-journal.h"
#include "update/update.h"

/* What the files of this folder share: one a state or section. */

/* Time for a VMM to answer prepare, and to say that it runs again. */
#define PREPARE_DEADLINE_USEC (30 * USEC_PER_SEC)
#define ABORT_DEADLINE_USEC (5 * USEC_PER_SEC)
/* Preserving fills holes and pins pages: seconds for each GiB. */
#define STAGE_DEADLINE_USEC (900 * USEC_PER_SEC)
#define DRAIN_DEADLINE_USEC (90 * USEC_PER_SEC)
#define CHECK_DEADLINE_USEC (20 * USEC_PER_SEC)
#define COMMIT_DEADLINE_USEC (2 * USEC_PER_SEC)
#define FREEZE_DEADLINE_USEC (2 * USEC_PER_SEC)
#define RESTORE_DEADLINE_USEC (30 * USEC_PER_SEC)
#define RETRIEVE_DEADLINE_USEC (60 * USEC_PER_SEC)
#define FINISH_DEADLINE_USEC (60 * USEC_PER_SEC)
/* Workers that preserve at the same time. */
#define LUO_PARALLEL 8u
#define RETRY_USEC (20 * USEC_PER_MSEC)
#define FINISH_RETRY_USEC (1 * USEC_PER_SEC)
#define FINISH_TRIES 10u

/* Where a machine is in the present state's work. */
typedef enum Step {
        STEP_NONE,
        STEP_ASKED,   /* the VMM has to answer */
        STEP_QUEUED,  /* waits for a worker */
        STEP_WORKING, /* sessions, plugins */
        STEP_DONE,
} Step;

typedef struct UpdateMachine UpdateMachine;
typedef struct DeviceStep {
        UpdateMachine *um;
        size_t device;
        PluginCall *call;
} DeviceStep;

struct UpdateMachine {
        Update *update;
        Machine *machine;
        bool taking_part;
        bool told;       /* was asked something: has to hear of an abort */
        bool sacrificed; /* left behind: runs on until the jump */
        bool incoming;   /* came over the jump */
        bool known;      /* its VMM had registered with an earlier run of this daemon, after the jump */
        bool late;       /* stranded only because its VMM was late */
        bool finished;   /* nothing of the update is left of it */
        Step step;
        bool working; /* counted in n_working */

        LuoCall *call;
        MachineFd *preserving;
        bool fds_done;
        DeviceStep *devices;
        size_t n_devices, n_devices_pending;

        unsigned finish_tries;
        sd_event_source *retry;
        UpdateRetrieve *retrieves;
        char *unretrieved; /* the last file that the kernel did not give back, and why */
        /* Discard */
        UpdateDiscardDone discard_done;
        void *discard_userdata;
        PluginCall *recover;
        size_t recovering;
};

/* 0: undone; positive: luv_update_undo_done() follows; negative: failed, the next one is undone all the
 * same. */
typedef int (*UndoFunc)(Update *u);

typedef struct Undo {
        const char *what; /* for people */
        UndoFunc func;
} Undo;

struct Update {
        UpdateConfig config;
        UpdateCallbacks callbacks;
        void *userdata;

        UpdateState state;
        char *id;
        uint64_t tries; /* updates begun by this process, part of no name */

        /* The request. */
        bool jump, dry_run, cold;
        uint64_t quiesce_usec;
        char **sacrifice;
        int kernel_fd, initrd_fd;
        char *cmdline;
        char *from_kernel, *to_kernel;

        Preflight *preflight;
        Units *units; /* NULL: simulated */

        /* The barrier over all machines. */
        void (*barrier)(Update *u);
        uint64_t deadline;
        sd_event_source *deadline_source;
        const char *asked; /* for the deadline's message */
        unsigned n_working;
        sd_event_source *queue_source;

        Undo undo[16];
        size_t n_undo;
        bool aborting;
        UpdateEnd end;
        UpdateState failed_in;
        char *reason, *failed_machine;
        sd_event_source *undo_source;
        bool waiting_for_resumed;
        bool operator_abort;

        /* Outgoing. */
        LuoSession *host_session;
        LuoCall *host_call;
        int host_copy_fd; /* the host's record once more, until it is preserved */
        sd_event_source *host_retry;
        uint64_t host_deadline;
        sd_bus_slot *units_slot;
        UnitsWait *units_wait;
        char **units_before, **units_stopped;
        char **frozen;
        size_t n_frozen;
        sd_event_source **freeze_sources;
        sd_event_source *jump_source;
        DeviceStep *refusals;
        size_t n_refusals, n_refusals_pending;
        int jump_error;
        char *refusal;

        Timeline timeline;

        /* Incoming. */
        bool knows_machines;
        Restore *restore;
        HostRecord *host;
        UpdateJournal *journal; /* an earlier run's, after the same jump */
        LuoSession *incoming_host_session;
        LuoCall *incoming_call;
        unsigned host_finish_tries;
        sd_event_source *host_finish_retry;
        char *lost;      /* why the last host record could not be read */
        char **given_up; /* machines that may have been in it, and start afresh */
        char **finished; /* names, for the journal */

        Report *last_report;
};

/* update.c */
UpdateMachine *luv_update_machine(Update *u, Machine *m);
void luv_update_say(Update *u, Machine *m, const char *format, ...) _printf_(3, 4);
void luv_update_tell(UpdateMachine *um, MachineEvent event, const char *reason);
int luv_update_push_undo(Update *u, const char *what, UndoFunc func);
/* The one way back. MACHINE may be NULL. Later reasons than the first are only logged. */
void luv_update_fail(Update *u, UpdateMachine *um, const char *format, ...) _printf_(3, 4);
/* The same, because of one of the machine's devices. */
void luv_update_fail_device(UpdateMachine *um, const MachineDevice *device, const char *format, ...)
                _printf_(3, 4);
void luv_update_undo_done(Update *u);
void luv_update_turn_back(Update *u);
/* Begins the present state's work: BARRIER is called when all machines have done theirs. */
int luv_update_set_barrier(Update *u, void (*barrier)(Update *u), const char *asked, uint64_t deadline_usec);
void luv_update_clear_barrier(Update *u);
void luv_update_set_step(UpdateMachine *um, Step step);
/* Whoever asked hears of the end. */
void luv_update_ended(Update *u, UpdateEnd end, const Findings *findings, const Report *report);
void luv_update_reset(Update *u);
void luv_update_cancel_machine(UpdateMachine *um);
void luv_update_keep_report(Update *u, Report *report);

/* update-check.c */
void luv_update_judge(Update *u, PreflightFacts *facts, char *const *sacrifice, Findings *findings);
int luv_update_start_check(Update *u, PreflightDone done);

/* update-stage.c */
void luv_update_stage(Update *u);
void luv_update_stage_machine(UpdateMachine *um);
void luv_update_go_on_from_staged(Update *u);
/* Lets queued machines work as far as there are workers. */
void luv_update_run_queue(Update *u);
void luv_update_queue(UpdateMachine *um);
void luv_update_release_worker(UpdateMachine *um);
/* Preserves what is held and in no session yet. NOW: what may not wait for the vCPUs to stop is left out. */
void luv_update_preserve_next(UpdateMachine *um);
void luv_update_drop_session(UpdateMachine *um);

/* update-drain.c */
void luv_update_drain(Update *u);

/* update-quiesce.c */
void luv_update_quiesce(Update *u);
void luv_update_quiesce_fds_done(UpdateMachine *um);

/* update-handover.c */
void luv_update_hand_over(Update *u);
int luv_update_thaw(const char *cgroup);
/* Runs of the daemon that were made by a simulated jump: ends the VMMs that a kexec would have ended. */
void luv_update_end_old_machines(Update *u);

/* update-abort.c */
int luv_update_undo_wait_resumed(Update *u);
int luv_update_undo_settle(Update *u);
void luv_update_check_resumed(Update *u);
void luv_update_abort_finished(Update *u);
void luv_update_roll_back(Update *u, const UpdateJournal *j);
void luv_update_cold_reboot(Update *u, const char *reason);

/* update-incoming.c */
void luv_update_restore(Update *u);
int luv_update_resumed_incoming(UpdateMachine *um, uint64_t running_usec);
void luv_update_check_settled(Update *u);
void luv_update_strand(UpdateMachine *um, const char *reason);
void luv_update_release_host_session(Update *u);
/* Whoever waits for a file of the machine is told that it does not come. */
void luv_update_give_up_retrieves(UpdateMachine *um);

/* update-finish.c */
void luv_update_finish(Update *u);

/* update-journal.c */
int luv_update_write_journal(Update *u);
