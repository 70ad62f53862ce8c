/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <inttypes.h>
#include <stdarg.h>
#include <sys/utsname.h>

#include "report/history.h"
#include "report/messages.h"
#include "update/update-private.h"
#include "util/log.h"
#include "util/string-util.h"
#include "util/time-util.h"

static const char *const luv_update_state_table[_UPDATE_STATE_MAX] = {
        [UPDATE_IDLE] = "idle",
        [UPDATE_CHECKING] = "checking",
        [UPDATE_STAGING] = "staging",
        [UPDATE_STAGED] = "staged",
        [UPDATE_DRAINING] = "draining",
        [UPDATE_QUIESCING] = "quiescing",
        [UPDATE_HANDING_OVER] = "handing_over",
        [UPDATE_RESTORING] = "restoring",
        [UPDATE_REBINDING] = "rebinding",
        [UPDATE_RESUMING] = "resuming",
        [UPDATE_FINISHING] = "finishing",
};
DEFINE_STRING_TABLE(luv_update_state, UpdateState);

#define TO(s) (1u << (s))

/* Every state before the jump leads back to idle. The jump itself leads out of this process. */
static const unsigned transitions[_UPDATE_STATE_MAX] = {
        [UPDATE_IDLE] = TO(UPDATE_CHECKING) | TO(UPDATE_RESTORING),
        [UPDATE_CHECKING] = TO(UPDATE_STAGING) | TO(UPDATE_IDLE),
        [UPDATE_STAGING] = TO(UPDATE_STAGED) | TO(UPDATE_IDLE),
        /* Back to staging: machines that came since are staged before it goes on. */
        [UPDATE_STAGED] = TO(UPDATE_STAGING) | TO(UPDATE_DRAINING) | TO(UPDATE_IDLE),
        [UPDATE_DRAINING] = TO(UPDATE_QUIESCING) | TO(UPDATE_IDLE),
        [UPDATE_QUIESCING] = TO(UPDATE_HANDING_OVER) | TO(UPDATE_IDLE),
        [UPDATE_HANDING_OVER] = TO(UPDATE_IDLE),
        /* To idle: nothing came over, it was a cold boot. */
        [UPDATE_RESTORING] = TO(UPDATE_REBINDING) | TO(UPDATE_IDLE),
        [UPDATE_REBINDING] = TO(UPDATE_RESUMING),
        [UPDATE_RESUMING] = TO(UPDATE_FINISHING),
        [UPDATE_FINISHING] = TO(UPDATE_IDLE),
};

bool luv_update_transition_is_legal(UpdateState from, UpdateState to)
{
        if ((int) from < 0 || from >= _UPDATE_STATE_MAX || (int) to < 0 || to >= _UPDATE_STATE_MAX)
                return false;
        return transitions[from] & TO(to);
}

UpdateState luv_update_state(const Update *u)
{
        return u->state;
}

const char *luv_update_id(const Update *u)
{
        return u->state == UPDATE_IDLE ? NULL : u->id;
}

bool luv_update_knows_machines(const Update *u)
{
        return u->knows_machines;
}

bool luv_update_takes_machines(const Update *u)
{
        return u->state < UPDATE_DRAINING || u->state > UPDATE_HANDING_OVER || u->aborting;
}

const Report *luv_update_last_report(const Update *u)
{
        return u->last_report;
}

static void emit(Update *u, UpdateProgress p)
{
        p.state = u->state;
        p.update_id = u->id;
        if (u->callbacks.progress)
                u->callbacks.progress(&p, u->userdata);
}

void luv_update_say(Update *u, Machine *m, const char *format, ...)
{
        _cleanup_free_ char *message = NULL;
        va_list ap;

        va_start(ap, format);
        message = luv_strfv(format, ap);
        va_end(ap);
        emit(u, (UpdateProgress) {
                                .message = message,
                                .machine = m ? m->name : NULL,
                                .machine_state = m ? m->state : _MACHINE_STATE_INVALID,
                });
}

int luv_update_transition(Update *u, UpdateState to)
{
        uint64_t now = luv_now_usec();
        UpdateState from = u->state;
        int r;

        if (!luv_update_transition_is_legal(from, to)) {
                luv_log_struct(LOG_ERR, &(LogFields) { .update_id = u->id },
                               "An update cannot go from %s to %s: this is a fault of luvfiod",
                               luv_update_state_to_string(from), luv_update_state_to_string(to));
                return -EPROTO;
        }
        if (from != UPDATE_IDLE)
                luv_timeline_end(&u->timeline, luv_update_state_to_string(from), NULL, now);
        if (to != UPDATE_IDLE) {
                r = luv_timeline_begin(&u->timeline, luv_update_state_to_string(to), NULL,
                                       to >= UPDATE_RESTORING, now);
                if (r < 0)
                        luv_log_error(r, "The time of state %s goes unmeasured",
                                      luv_update_state_to_string(to));
        }
        u->state = to;
        /* Every start of the daemon looks whether something is to be restored; that is no update yet. */
        luv_log_struct(u->id ? LOG_INFO : LOG_DEBUG,
                       &(LogFields) {
                                       .message_id = LUVFIO_MESSAGE_UPDATE_STATE,
                                       .update_id = u->id,
                                       .state = luv_update_state_to_string(to),
                       },
                       "Update is %s now (was %s)", luv_update_state_to_string(to),
                       luv_update_state_to_string(from));
        emit(u, (UpdateProgress) { .machine_state = _MACHINE_STATE_INVALID });
        return 0;
}

/* Machines. */

UpdateMachine *luv_update_machine(Update *u, Machine *m)
{
        UpdateMachine *um = m->update;

        if (um)
                return um;
        um = calloc(1, sizeof(UpdateMachine));
        if (!um)
                return NULL;
        um->update = u;
        um->machine = m;
        m->update = um;
        return um;
}

void luv_update_cancel_machine(UpdateMachine *um)
{
        um->call = luv_luo_call_free(um->call);
        um->preserving = NULL;
        for (size_t i = 0; i < um->n_devices; i++)
                luv_plugin_call_free(um->devices[i].call);
        free(um->devices);
        um->devices = NULL;
        um->n_devices = um->n_devices_pending = 0;
        um->retry = sd_event_source_disable_unref(um->retry);
        luv_update_release_worker(um);
}

void luv_update_machine_forgotten(Update *u, Machine *m)
{
        UpdateMachine *um = m->update;

        if (!um)
                return;
        luv_update_cancel_machine(um);
        luv_update_give_up_retrieves(um);
        luv_plugin_call_free(um->recover);
        free(um->unretrieved);
        m->update = NULL;
        free(um);
}

void luv_update_machine_state_changed(Update *u, Machine *m, MachineState old)
{
        luv_update_say(u, m, "machine %s is %s", m->name, luv_machine_state_to_string(m->state));
        if (u->waiting_for_resumed)
                luv_update_check_resumed(u);
}

void luv_update_tell(UpdateMachine *um, MachineEvent event, const char *reason)
{
        Update *u = um->update;
        uint64_t remaining = UINT64_MAX;

        um->told = event != MACHINE_EVENT_ABORT && event != MACHINE_EVENT_FINISHED;
        if (u->deadline > 0 && (event == MACHINE_EVENT_PREPARE || event == MACHINE_EVENT_QUIESCE ||
                                event == MACHINE_EVENT_COMMIT))
                remaining = luv_usec_left(u->deadline);
        if (u->callbacks.event)
                u->callbacks.event(um->machine, event, u->id, remaining, reason, u->userdata);
}

/* The barrier. */

static bool in_barrier(const UpdateMachine *um)
{
        return um && um->taking_part && !um->sacrificed;
}

static void check_barrier(Update *u)
{
        size_t n = luv_machine_registry_size(u->config.machines), done = 0, total = 0;
        void (*barrier)(Update *) = u->barrier;

        if (!barrier || u->aborting)
                return;
        for (size_t i = 0; i < n; i++) {
                const UpdateMachine *um = luv_machine_registry_at(u->config.machines, i)->update;

                if (!in_barrier(um))
                        continue;
                total++;
                done += um->step == STEP_DONE;
        }
        if (total > 0)
                emit(u, (UpdateProgress) { .machine_state = _MACHINE_STATE_INVALID,
                                           .done = done,
                                           .total = total });
        if (done < total)
                return;
        luv_update_clear_barrier(u);
        barrier(u);
}

static int on_check_barrier(sd_event_source *s, void *userdata)
{
        check_barrier(userdata);
        return 0;
}

/* Out of whatever callback this is: what comes next may free what called. */
static void check_barrier_soon(Update *u)
{
        int r;

        if (!u->barrier || u->aborting)
                return;
        if (!u->queue_source) {
                r = sd_event_add_defer(u->config.event, &u->queue_source, on_check_barrier, u);
                if (r < 0) {
                        luv_update_fail(u, NULL, "out of memory");
                        return;
                }
        }
        r = sd_event_source_set_enabled(u->queue_source, SD_EVENT_ONESHOT);
        if (r < 0)
                luv_update_fail(u, NULL, "the event loop failed: %s", strerror(-r));
}

void luv_update_set_step(UpdateMachine *um, Step step)
{
        um->step = step;
        if (step == STEP_DONE || step == STEP_NONE)
                check_barrier_soon(um->update);
}

static int on_deadline(sd_event_source *s, uint64_t usec, void *userdata)
{
        Update *u = userdata;
        size_t n = luv_machine_registry_size(u->config.machines);

        u->deadline_source = sd_event_source_disable_unref(u->deadline_source);
        for (size_t i = 0; i < n; i++) {
                UpdateMachine *um = luv_machine_registry_at(u->config.machines, i)->update;

                if (!in_barrier(um) || um->step != STEP_ASKED)
                        continue;
                luv_log_struct(LOG_WARNING,
                               &(LogFields) {
                                               .message_id = LUVFIO_MESSAGE_MACHINE_SILENT,
                                               .update_id = u->id,
                                               .machine = um->machine->name,
                                               .state = luv_update_state_to_string(u->state),
                               },
                               "The VMM of machine %s did not answer %s in time", um->machine->name,
                               u->asked ? u->asked : "");
                luv_update_fail(u, um, "the VMM of machine %s did not answer %s in time", um->machine->name,
                                u->asked ? u->asked : "");
        }
        return 0;
}

int luv_update_set_barrier(Update *u, void (*barrier)(Update *u), const char *asked, uint64_t deadline_usec)
{
        int r;

        luv_update_clear_barrier(u);
        u->deadline = deadline_usec;
        u->asked = asked;
        r = sd_event_add_time(u->config.event, &u->deadline_source, CLOCK_BOOTTIME, deadline_usec,
                              USEC_PER_MSEC, on_deadline, u);
        if (r < 0)
                return r;
        u->barrier = barrier;
        check_barrier_soon(u);
        return 0;
}

void luv_update_clear_barrier(Update *u)
{
        u->barrier = NULL;
        u->deadline_source = sd_event_source_disable_unref(u->deadline_source);
        if (u->queue_source)
                (void) sd_event_source_set_enabled(u->queue_source, SD_EVENT_OFF);
}

/* The way back. */

int luv_update_push_undo(Update *u, const char *what, UndoFunc func)
{
        if (u->n_undo >= ELEMENTSOF(u->undo))
                return -E2BIG;
        u->undo[u->n_undo++] = (Undo) { .what = what, .func = func };
        return 0;
}

static int on_undo(sd_event_source *s, void *userdata)
{
        Update *u = userdata;

        while (u->n_undo > 0) {
                Undo undo = u->undo[--u->n_undo];
                int r;

                r = undo.func(u);
                if (r > 0)
                        return 0;
                if (r < 0)
                        luv_log_error(r, "Giving the update up: %s could not be undone", undo.what);
        }
        luv_update_abort_finished(u);
        return 0;
}

void luv_update_undo_done(Update *u)
{
        int r;

        if (!u->undo_source) {
                r = sd_event_add_defer(u->config.event, &u->undo_source, on_undo, u);
                if (r < 0) {
                        /* Machines stand: better on this stack than never. */
                        (void) on_undo(NULL, u);
                        return;
                }
                (void) sd_event_source_set_priority(u->undo_source, SD_EVENT_PRIORITY_IMPORTANT);
        }
        r = sd_event_source_set_enabled(u->undo_source, SD_EVENT_ONESHOT);
        if (r < 0)
                (void) on_undo(NULL, u);
}

static void cancel_work(Update *u)
{
        size_t n = luv_machine_registry_size(u->config.machines);

        luv_update_clear_barrier(u);
        u->preflight = luv_preflight_free(u->preflight);
        u->host_call = luv_luo_call_free(u->host_call);
        u->host_retry = sd_event_source_disable_unref(u->host_retry);
        u->units_slot = sd_bus_slot_unref(u->units_slot);
        u->units_wait = luv_units_wait_free(u->units_wait);
        u->jump_source = sd_event_source_disable_unref(u->jump_source);
        for (size_t i = 0; i < u->n_frozen && u->freeze_sources; i++)
                sd_event_source_disable_unref(u->freeze_sources[i]);
        free(u->freeze_sources);
        u->freeze_sources = NULL;
        for (size_t i = 0; i < u->n_refusals; i++)
                luv_plugin_call_free(u->refusals[i].call);
        free(u->refusals);
        u->refusals = NULL;
        u->n_refusals = u->n_refusals_pending = 0;
        for (size_t i = 0; i < n; i++) {
                UpdateMachine *um = luv_machine_registry_at(u->config.machines, i)->update;

                if (um && !um->incoming)
                        luv_update_cancel_machine(um);
        }
}

static void begin_abort(Update *u, UpdateEnd end, const char *reason, const char *machine)
{
        u->aborting = true;
        u->end = end;
        u->failed_in = u->state;
        if (luv_free_and_strdup(&u->reason, reason) < 0 ||
            luv_free_and_strdup(&u->failed_machine, machine) < 0)
                luv_log_error(-ENOMEM, "The reason of the abort is lost");
        cancel_work(u);
        luv_update_undo_done(u);
}

static void sacrifice(UpdateMachine *um, const char *reason)
{
        Update *u = um->update;
        Machine *m = um->machine;

        luv_log_struct(LOG_WARNING,
                       &(LogFields) {
                                       .message_id = LUVFIO_MESSAGE_MACHINE_SACRIFICED,
                                       .update_id = u->id,
                                       .machine = m->name,
                                       .state = luv_update_state_to_string(u->state),
                       },
                       "Machine %s is left behind and will be lost at the jump: %s", m->name, reason);
        (void) luv_machine_set_reason(m, "left behind by the update: %s", reason);
        um->sacrificed = true;
        luv_update_cancel_machine(um);
        luv_update_drop_session(um);
        luv_update_say(u, m, "machine %s is left behind and will be lost: %s", m->name, reason);
        if (um->told && m->state != MACHINE_RUNNING) {
                luv_machine_set_state(m, MACHINE_ABORTING);
                luv_update_tell(um, MACHINE_EVENT_ABORT, reason);
        }
        luv_update_set_step(um, STEP_NONE);
}

static void fail(Update *u, UpdateMachine *um, const MachineDevice *device, const char *format, va_list ap)
{
        _cleanup_free_ char *reason = luv_strfv(format, ap);

        if (u->aborting || u->state >= UPDATE_RESTORING || u->state == UPDATE_IDLE) {
                luv_log_warning("Also: %s", reason ? reason : format);
                return;
        }
        if (um && !um->sacrificed && luv_strv_contains(u->sacrifice, um->machine->name)) {
                sacrifice(um, reason ? reason : "out of memory");
                return;
        }
        if (um)
                (void) luv_machine_set_reason(um->machine, "%s", reason ? reason : "out of memory");
        luv_log_struct(LOG_WARNING,
                       &(LogFields) {
                                       .update_id = u->id,
                                       .machine = um ? um->machine->name : NULL,
                                       .device = device ? device->address : NULL,
                                       .plugin = device ? device->plugin : NULL,
                                       .state = luv_update_state_to_string(u->state),
                       },
                       "The update is given up while %s: %s", luv_update_state_to_string(u->state),
                       reason ? reason : "out of memory");
        begin_abort(u, UPDATE_END_ABORTED, reason ? reason : "out of memory", um ? um->machine->name : NULL);
}

void luv_update_fail(Update *u, UpdateMachine *um, const char *format, ...)
{
        va_list ap;

        va_start(ap, format);
        fail(u, um, NULL, format, ap);
        va_end(ap);
}

void luv_update_fail_device(UpdateMachine *um, const MachineDevice *device, const char *format, ...)
{
        va_list ap;

        va_start(ap, format);
        fail(um->update, um, device, format, ap);
        va_end(ap);
}

int luv_update_abort(Update *u, const char *reason)
{
        if (u->state == UPDATE_IDLE || u->state >= UPDATE_RESTORING)
                return -EPROTO;
        if (u->aborting)
                return 0;
        luv_log_struct(LOG_NOTICE,
                       &(LogFields) { .update_id = u->id, .state = luv_update_state_to_string(u->state) },
                       "The update is given up while %s: %s", luv_update_state_to_string(u->state), reason);
        u->operator_abort = true;
        begin_abort(u, UPDATE_END_ABORTED, reason, NULL);
        return 0;
}

/* A dry run has seen all it wanted to see. */
void luv_update_turn_back(Update *u)
{
        begin_abort(u, UPDATE_END_DRY_RUN, "it was a dry run, all gates were passed", NULL);
}

void luv_update_ended(Update *u, UpdateEnd end, const Findings *findings, const Report *report)
{
        UpdateOutcome o = {
                .end = end,
                .update_id = u->id,
                .state = u->failed_in,
                .reason = u->reason,
                .machine = u->failed_machine,
                .findings = findings,
                .report = report,
        };

        if (u->callbacks.ended)
                u->callbacks.ended(&o, u->userdata);
}

void luv_update_keep_report(Update *u, Report *report)
{
        int r;

        luv_report_free(u->last_report);
        u->last_report = report;
        r = luv_history_write(u->config.state_dir, report);
        if (r < 0)
                luv_log_struct(LOG_WARNING,
                               &(LogFields) {
                                               .message_id = LUVFIO_MESSAGE_HISTORY_LOST,
                                               .update_id = report->update_id,
                                               .error = r,
                               },
                               "The report of update %s cannot be kept in %s/history: %s", report->update_id,
                               u->config.state_dir, strerror(-r));
        emit(u, (UpdateProgress) { .machine_state = _MACHINE_STATE_INVALID, .report = report });
}

/* Nothing of an update is left in memory. */
void luv_update_reset(Update *u)
{
        size_t n = luv_machine_registry_size(u->config.machines);

        cancel_work(u);
        u->n_undo = 0;
        u->aborting = u->jump = u->dry_run = u->cold = u->operator_abort = false;
        u->waiting_for_resumed = false;
        u->deadline = 0;
        free(u->id);
        u->id = NULL;
        u->sacrifice = luv_strv_free(u->sacrifice);
        u->kernel_fd = safe_close(u->kernel_fd);
        u->initrd_fd = safe_close(u->initrd_fd);
        free(u->cmdline);
        free(u->from_kernel);
        free(u->to_kernel);
        free(u->reason);
        free(u->failed_machine);
        free(u->refusal);
        u->cmdline = u->from_kernel = u->to_kernel = u->reason = u->failed_machine = u->refusal = NULL;
        u->units_before = luv_strv_free(u->units_before);
        u->units_stopped = luv_strv_free(u->units_stopped);
        u->frozen = luv_strv_free(u->frozen);
        u->n_frozen = 0;
        u->host_session = luv_luo_session_unref(u->host_session);
        u->host_copy_fd = safe_close(u->host_copy_fd);
        luv_timeline_done(&u->timeline);
        for (size_t i = 0; i < n; i++) {
                UpdateMachine *um = luv_machine_registry_at(u->config.machines, i)->update;

                if (um && !um->incoming) {
                        um->taking_part = um->told = um->sacrificed = um->fds_done = false;
                        um->step = STEP_NONE;
                }
        }
}

int luv_update_new(const UpdateConfig *config, const UpdateCallbacks *callbacks, void *userdata,
                   Update **ret)
{
        _cleanup_(luv_update_freep) Update *u = NULL;
        TimelineAnchor anchor;
        int r;

        u = calloc(1, sizeof(Update));
        if (!u)
                return -ENOMEM;
        u->config = *config;
        u->config.event = sd_event_ref(config->event);
        if (callbacks)
                u->callbacks = *callbacks;
        u->userdata = userdata;
        u->kernel_fd = u->initrd_fd = u->host_copy_fd = -EBADF;
        if (!config->simulated) {
                r = luv_units_new(config->event, &u->units);
                if (r < 0)
                        return r;
        }
        /* The rate of the TSC is measured from here on. */
        r = luv_timeline_anchor(&anchor);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(u);
        return 0;
}

Update *luv_update_free(Update *u)
{
        if (!u)
                return NULL;
        luv_update_reset(u);
        for (size_t i = 0; i < luv_machine_registry_size(u->config.machines); i++)
                luv_update_machine_forgotten(u, luv_machine_registry_at(u->config.machines, i));
        u->restore = luv_restore_free(u->restore);
        luv_luo_call_free(u->incoming_call);
        sd_event_source_disable_unref(u->host_finish_retry);
        luv_luo_session_unref(u->incoming_host_session);
        luv_host_record_free(u->host);
        luv_update_journal_free(u->journal);
        luv_strv_free(u->finished);
        free(u->lost);
        luv_strv_free(u->given_up);
        sd_event_source_disable_unref(u->queue_source);
        sd_event_source_disable_unref(u->undo_source);
        luv_units_free(u->units);
        luv_report_free(u->last_report);
        sd_event_unref(u->config.event);
        free(u);
        return NULL;
}

/* Begin. */

static void take_request(Update *u, UpdateRequest *request)
{
        u->jump = request->jump;
        u->dry_run = request->dry_run;
        u->cold = request->cold;
        u->quiesce_usec = request->deadline_usec > 0 ? request->deadline_usec : LUVFIO_DEADLINE_DEFAULT_USEC;
}

static void on_rechecked(int error, PreflightFacts *facts, void *userdata)
{
        Update *u = userdata;
        Findings findings = {};

        if (error < 0) {
                luv_update_fail(u, NULL, "the checks could not be made: %s", strerror(-error));
                return;
        }
        luv_update_judge(u, facts, u->sacrifice, &findings);
        u->preflight = luv_preflight_free(u->preflight);
        if (luv_findings_blockers(&findings) > 0) {
                /* What is staged stays so. */
                u->jump = u->cold = false;
                luv_update_ended(u, UPDATE_END_BLOCKED, &findings, NULL);
        } else {
                luv_update_go_on_from_staged(u);
        }
        luv_findings_done(&findings);
}

static int go_on(Update *u, UpdateRequest *request)
{
        char **sacrifice = NULL;
        int r;

        if (u->aborting || u->preflight || u->jump || !request->jump || request->kernel_fd >= 0 ||
            request->cmdline)
                return -EBUSY;
        r = luv_strv_copy(request->sacrifice, &sacrifice);
        if (r < 0)
                return r;
        luv_strv_free(u->sacrifice);
        u->sacrifice = sacrifice;
        take_request(u, request);
        return luv_update_start_check(u, on_rechecked);
}

static void on_checked(int error, PreflightFacts *facts, void *userdata)
{
        Update *u = userdata;
        _cleanup_free_ char *reason = NULL;
        Findings findings = {};
        bool cold = u->cold;

        if (error < 0) {
                luv_update_fail(u, NULL, "the checks could not be made: %s", strerror(-error));
                return;
        }
        luv_update_judge(u, facts, u->sacrifice, &findings);

        u->failed_in = UPDATE_CHECKING;
        /* What is wrong with the kernel itself is said first: nothing else matters then. */
        for (size_t i = 0; i < findings.n; i++) {
                const Finding *f = findings.items + i;
                bool mistake = streq(f->id, "kernel-invalid") || streq(f->id, "initrd-invalid") ||
                               streq(f->id, "cmdline-unfit");

                if (f->severity != SEVERITY_BLOCKER)
                        continue;
                if (!reason &&
                    (mistake || streq(f->id, "kernel-no-liveupdate") || streq(f->id, "abi-incompatible")))
                        reason = strdup(f->message);
                /* Of whoever asked, which is no reason to end all machines. */
                if (mistake)
                        cold = false;
        }
        (void) luv_free_and_strdup(&u->to_kernel,
                                   facts->kernel.release ? facts->kernel.release : u->from_kernel);
        if (!u->cmdline)
                u->cmdline = TAKE_PTR(facts->cmdline);
        u->preflight = luv_preflight_free(u->preflight);

        if (reason || luv_findings_blockers(&findings) > 0) {
                luv_log_struct(LOG_NOTICE,
                               &(LogFields) {
                                               .message_id = LUVFIO_MESSAGE_UPDATE_BLOCKED,
                                               .update_id = u->id,
                                               .state = "checking",
                               },
                               "The update is refused, %zu blockers; the first: %s",
                               luv_findings_blockers(&findings),
                               reason           ? reason
                               : findings.n > 0 ? findings.items[0].message
                                                : "out of memory");
                (void) luv_free_and_strdup(&u->reason, reason           ? reason
                                                       : findings.n > 0 ? findings.items[0].message
                                                                        : NULL);
                (void) luv_update_transition(u, UPDATE_IDLE);
                luv_update_ended(u, reason ? UPDATE_END_BAD_KERNEL : UPDATE_END_BLOCKED, &findings, NULL);
                luv_update_reset(u);
                if (cold)
                        luv_update_cold_reboot(u, "a live update is not possible");
        } else {
                luv_update_stage(u);
        }
        luv_findings_done(&findings);
}

int luv_update_begin(Update *u, UpdateRequest *request)
{
        char id[LUVFIO_ID_SIZE];
        struct utsname name;
        size_t n = luv_machine_registry_size(u->config.machines);
        int r;

        if (u->state == UPDATE_STAGED)
                return go_on(u, request);
        if (u->state != UPDATE_IDLE || u->aborting)
                return -EBUSY;
        if (request->kernel_fd < 0)
                return -ENOKEY;

        luv_update_reset(u);
        if (uname(&name) < 0)
                return negative_errno();
        luv_random_id(id);
        if (luv_free_and_strdup(&u->id, id) < 0 || luv_free_and_strdup(&u->from_kernel, name.release) < 0 ||
            luv_free_and_strdup(&u->cmdline, request->cmdline) < 0 ||
            luv_strv_copy(request->sacrifice, &u->sacrifice) < 0) {
                luv_update_reset(u);
                return -ENOMEM;
        }
        take_request(u, request);
        u->kernel_fd = TAKE_FD(request->kernel_fd);
        u->initrd_fd = TAKE_FD(request->initrd_fd);
        u->timeline.started_usec = luv_now_usec();
        u->timeline.started_realtime_usec = luv_realtime_usec();
        for (size_t i = 0; i < n; i++) {
                Machine *m = luv_machine_registry_at(u->config.machines, i);

                if (m->state == MACHINE_RUNNING)
                        (void) luv_machine_set_reason(m, NULL);
        }
        luv_log_struct(LOG_NOTICE,
                       &(LogFields) { .message_id = LUVFIO_MESSAGE_UPDATE_STARTED, .update_id = u->id },
                       "Update %s begins, %zu machines", u->id, n);
        r = luv_update_transition(u, UPDATE_CHECKING);
        if (r >= 0)
                r = luv_update_start_check(u, on_checked);
        if (r < 0) {
                if (u->state == UPDATE_CHECKING)
                        (void) luv_update_transition(u, UPDATE_IDLE);
                luv_update_reset(u);
        }
        return r;
}

/* What the VMMs say. */

/* An answer that crossed with an abort on its way: nobody can be blamed for it, and it means nothing any
 * more. */
bool luv_update_is_late(const Machine *m)
{
        return m->state == MACHINE_ABORTING;
}

int luv_update_prepared(Update *u, Machine *m)
{
        UpdateMachine *um = m->update;

        if (luv_update_is_late(m))
                return 0;
        if (m->state != MACHINE_PREPARING || !in_barrier(um) || um->step != STEP_ASKED || u->aborting)
                return -EPROTO;
        /* What nobody handed over would be lost without a word. */
        if (m->missing && m->missing[0])
                luv_update_fail(u, um,
                                "the VMM of machine %s has not handed \"%s\" over again since luvfiod was "
                                "restarted",
                                m->name, m->missing[0]);
        else if (luv_machine_memory(m) == 0)
                luv_update_fail(u, um, "the VMM of machine %s handed no memory over", m->name);
        else
                luv_update_queue(um);
        return 0;
}

void luv_update_blocked(Update *u, Machine *m)
{
        UpdateMachine *um = m->update;

        if (m->n_blockers > 0 && um && um->taking_part && !um->sacrificed && m->state != MACHINE_RUNNING)
                luv_update_fail(u, um, "machine %s cannot take part: %s", m->name, m->blockers[0].message);
}

int luv_update_committed(Update *u, Machine *m)
{
        UpdateMachine *um = m->update;

        if (luv_update_is_late(m))
                return 0;
        if (m->state != MACHINE_QUIESCED || u->state != UPDATE_HANDING_OVER || !in_barrier(um) ||
            um->step != STEP_ASKED || u->aborting)
                return -EPROTO;
        luv_machine_set_state(m, MACHINE_COMMITTED);
        luv_update_set_step(um, STEP_DONE);
        return 0;
}

int luv_update_resumed(Update *u, Machine *m, uint64_t running_usec)
{
        UpdateMachine *um = m->update;

        if (m->state == MACHINE_ABORTING) {
                luv_machine_set_state(m, MACHINE_RUNNING);
                return 0;
        }
        if (m->state == MACHINE_RESUMING && um)
                return luv_update_resumed_incoming(um, running_usec);
        return -EPROTO;
}

void luv_update_attached(Update *u, Machine *m)
{
        UpdateMachine *um = luv_update_machine(u, m);

        if (!um) {
                luv_log_error(-ENOMEM, "Machine %s cannot take part in an update", m->name);
                return;
        }
        switch (m->state) {
        case MACHINE_RUNNING:
                /* It came while an update waits: it comes along. Before the barrier is there it is asked
                 * with all others. */
                if (((u->state == UPDATE_STAGING && u->barrier) || u->state == UPDATE_STAGED) &&
                    !u->aborting && !um->taking_part)
                        luv_update_stage_machine(um);
                break;
        case MACHINE_PREPARING:
                if (um->step == STEP_ASKED)
                        luv_update_tell(um, MACHINE_EVENT_PREPARE, NULL);
                break;
        case MACHINE_QUIESCING:
                luv_update_tell(um, MACHINE_EVENT_QUIESCE, NULL);
                break;
        case MACHINE_QUIESCED:
                if (u->state == UPDATE_HANDING_OVER && um->step == STEP_ASKED)
                        luv_update_tell(um, MACHINE_EVENT_COMMIT, NULL);
                break;
        case MACHINE_ABORTING:
                luv_update_tell(um, MACHINE_EVENT_ABORT, m->reason);
                break;
        case MACHINE_RESUMING:
                luv_update_tell(um, MACHINE_EVENT_RESUME, NULL);
                break;
        default:
                break;
        }
}

void luv_update_detached(Update *u, Machine *m)
{
        UpdateMachine *um = m->update;

        if (m->exited && (m->state == MACHINE_RUNNING || m->state == MACHINE_RESUMING)) {
                m->graced = false;
                luv_update_machine_exited(u, m);
                return;
        }
        /* Such a VMM lets its vCPUs run by itself: it cannot know what became of the update. */
        if (in_barrier(um) && (m->state == MACHINE_QUIESCING || m->state == MACHINE_QUIESCED))
                luv_update_fail(u, um, "the VMM of machine %s closed its connection before it had committed",
                                m->name);
}

void luv_update_held(Update *u, Machine *m, MachineFd *f)
{
        UpdateMachine *um = m->update;

        /* Memory that came after it was prepared need not wait for the vCPUs to stop. */
        if (in_barrier(um) && !u->aborting && m->state == MACHINE_PREPARED && um->step == STEP_DONE &&
            !f->preserved && (u->state == UPDATE_STAGING || u->state == UPDATE_STAGED)) {
                um->fds_done = false;
                luv_update_queue(um);
        }
}

/*
 * The process that registered it ended without ever having watched, as a script would: it was no VMM, and
 * whoever is may come within a while. A VMM's end is the end of its machine, and at once: its memory is
 * wanted.
 */
static bool may_be_taken_up(Machine *m)
{
        int r;

        if (m->served || m->graced)
                return false;
        m->graced = true;
        r = luv_machine_grant_grace(m);
        if (r < 0)
                luv_log_error(r, "Machine %s gets no grace", m->name);
        return r >= 0;
}

void luv_update_withdraw(Update *u, Machine *m)
{
        UpdateMachine *um = m->update;

        /* Of an update that is being given up: it runs on before its session is let go. */
        if (um && u->aborting && !um->incoming)
                luv_update_drop_session(um);
        luv_machine_forget(m);
}

void luv_update_machine_exited(Update *u, Machine *m)
{
        UpdateMachine *um = m->update;

        /* Another process speaks for it. */
        if (m->attached)
                return;
        switch (m->state) {
        case MACHINE_RESTORING:
        case MACHINE_RESUMING:
        case MACHINE_STRANDED:
                /* Its manager may start it again; there is a deadline for that. */
                if (m->session)
                        luv_machine_release_devices(m);
                /* Not for one that had come back late. */
                if (um && um->late && m->state == MACHINE_RESUMING && um->step != STEP_WORKING)
                        luv_update_strand(um, "its VMM came back late, and ended before its vCPUs ran");
                return;
        case MACHINE_RUNNING:
                if (may_be_taken_up(m))
                        return;
                break;
        case MACHINE_ABORTING:
                break;
        default:
                if (in_barrier(um) && !u->aborting) {
                        luv_update_fail(u, um, "the VMM of machine %s ended while %s", m->name,
                                        luv_update_state_to_string(u->state));
                        /* Left behind, or forgotten when all has been undone. */
                        if (u->aborting)
                                return;
                }
                break;
        }
        if (u->aborting && m->session)
                return;
        luv_log_struct(LOG_INFO,
                       &(LogFields) { .message_id = LUVFIO_MESSAGE_MACHINE_FORGOTTEN, .machine = m->name },
                       "Machine %s is forgotten: its VMM (pid %i) ended", m->name, (int) m->owner.pid);
        luv_machine_forget(m);
        if (u->waiting_for_resumed)
                luv_update_check_resumed(u);
        check_barrier_soon(u);
}
