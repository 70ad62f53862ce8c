/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "report/messages.h"
#include "update/update-private.h"
#include "util/log.h"
#include "util/string-util.h"
#include "util/time-util.h"

/* The end of the way back: machines run again, nothing is left of the update. */

static size_t count_aborting(Update *u)
{
        size_t n = luv_machine_registry_size(u->config.machines), k = 0;

        for (size_t i = 0; i < n; i++) {
                Machine *m = luv_machine_registry_at(u->config.machines, i);

                k += m->state == MACHINE_ABORTING && !m->exited;
        }
        return k;
}

static void stop_waiting(Update *u)
{
        u->waiting_for_resumed = false;
        u->deadline_source = sd_event_source_disable_unref(u->deadline_source);
        luv_update_undo_done(u);
}

void luv_update_check_resumed(Update *u)
{
        if (u->waiting_for_resumed && count_aborting(u) == 0)
                stop_waiting(u);
}

static int on_resumed_late(sd_event_source *s, uint64_t usec, void *userdata)
{
        Update *u = userdata;
        size_t n = luv_machine_registry_size(u->config.machines);

        for (size_t i = 0; i < n; i++) {
                Machine *m = luv_machine_registry_at(u->config.machines, i);

                if (m->state != MACHINE_ABORTING)
                        continue;
                (void) luv_machine_set_reason(
                                m, "it was told to run on after an aborted update and has not answered");
                luv_log_struct(LOG_WARNING,
                               &(LogFields) {
                                               .message_id = LUVFIO_MESSAGE_MACHINE_SILENT,
                                               .update_id = u->id,
                                               .machine = m->name,
                               },
                               "The VMM of machine %s was told to run on and has not answered", m->name);
        }
        stop_waiting(u);
        return 0;
}

int luv_update_undo_wait_resumed(Update *u)
{
        int r;

        if (count_aborting(u) == 0)
                return 0;
        r = sd_event_add_time_relative(u->config.event, &u->deadline_source, CLOCK_BOOTTIME,
                                       ABORT_DEADLINE_USEC, 0, on_resumed_late, u);
        if (r < 0)
                return r;
        u->waiting_for_resumed = true;
        return 1;
}

/*
 * The service manager closes what was in its store in its own time, and until then the next update cannot
 * make a session of the same name: it is over when one can be made.
 */
static void on_settled(int error, LuoSession *session, void *userdata);

static int on_settle_retry(sd_event_source *s, uint64_t usec, void *userdata)
{
        Update *u = userdata;
        int r;

        u->host_retry = sd_event_source_disable_unref(u->host_retry);
        r = luv_luo_session_create(u->config.luo, LUVFIO_HOST_SESSION, u->host_deadline, on_settled, u,
                                   &u->host_call);
        if (r < 0)
                luv_update_undo_done(u);
        return 0;
}

static void on_settled(int error, LuoSession *session, void *userdata)
{
        Update *u = userdata;

        u->host_call = luv_luo_call_free(u->host_call);
        luv_luo_session_unref(session);
        if (error == -EEXIST && luv_usec_left(u->host_deadline) > 0 &&
            sd_event_add_time_relative(u->config.event, &u->host_retry, CLOCK_BOOTTIME, RETRY_USEC, 0,
                                       on_settle_retry, u) >= 0)
                return;
        if (error < 0)
                luv_log_warning("The sessions of the aborted update are perhaps not gone yet: %s",
                                strerror(-error));
        luv_update_undo_done(u);
}

int luv_update_undo_settle(Update *u)
{
        int r;

        if (!luv_fd_store_available(u->config.store))
                return 0;
        u->host_deadline = luv_now_usec() + ABORT_DEADLINE_USEC;
        r = luv_luo_session_create(u->config.luo, LUVFIO_HOST_SESSION, u->host_deadline, on_settled, u,
                                   &u->host_call);
        return r < 0 ? r : 1;
}

static int add_stops(Update *u, Report *report)
{
        size_t n = luv_machine_registry_size(u->config.machines);

        for (size_t i = 0; i < n; i++) {
                Machine *m = luv_machine_registry_at(u->config.machines, i);
                UpdateMachine *um = m->update;
                int r;

                if (!um || !um->taking_part)
                        continue;
                r = luv_report_add_machine(report, m->name, UINT64_MAX, NULL);
                if (r < 0)
                        return r;
        }
        return 0;
}

void luv_update_abort_finished(Update *u)
{
        _cleanup_(luv_report_freep) Report *report = NULL;
        bool cold = u->cold && !u->operator_abort && u->end == UPDATE_END_ABORTED;
        int r;

        (void) luv_update_transition(u, UPDATE_IDLE);
        luv_update_journal_remove(u->config.runtime_dir);
        u->aborting = false;
        if (u->end == UPDATE_END_ABORTED) {
                luv_log_struct(LOG_NOTICE,
                               &(LogFields) {
                                               .message_id = LUVFIO_MESSAGE_UPDATE_ABORTED,
                                               .update_id = u->id,
                                               .machine = u->failed_machine,
                                               .state = luv_update_state_to_string(u->failed_in),
                               },
                               "Update %s was given up while %s, machines run on: %s", u->id,
                               luv_update_state_to_string(u->failed_in), strempty(u->reason));
                r = luv_report_new(u->id, REPORT_ABORTED, u->reason, strempty(u->from_kernel), u->to_kernel,
                                   &report);
                if (r >= 0)
                        r = luv_report_set_timeline(report, &u->timeline);
                if (r >= 0)
                        r = add_stops(u, report);
                if (r >= 0) {
                        luv_report_sort(report);
                        luv_update_keep_report(u, TAKE_PTR(report));
                } else {
                        luv_log_error(r, "The report of update %s is lost", u->id);
                }
        } else {
                luv_log_info("The dry run of update %s passed all gates", u->id);
        }
        luv_update_ended(u, u->end, NULL, u->end == UPDATE_END_ABORTED ? u->last_report : NULL);
        luv_update_reset(u);
        if (cold)
                luv_update_cold_reboot(u, "the live update was given up");
}

void luv_update_cold_reboot(Update *u, const char *reason)
{
        int r;

        luv_log_struct(LOG_WARNING, &(LogFields) { .message_id = LUVFIO_MESSAGE_COLD_REBOOT },
                       "The host is rebooted cold, as was asked for: %s", reason);
        if (!u->units) {
                luv_log_warning("Simulated: no reboot");
                return;
        }
        r = luv_units_start(u->units, "reboot.target", "replace-irreversibly", NULL, NULL, NULL);
        if (r < 0)
                luv_log_error(r, "Cannot ask the service manager to reboot");
}

/*
 * The note may be older than the last session, so all go. One that came in over an earlier jump (a stranded
 * machine's) is put back by the kernel when it is closed, and found again.
 */
static void drop_stored_sessions(Update *u)
{
        _cleanup_strv_ char **names = NULL;
        int fd, r;

        r = luv_fd_store_names(u->config.store, LUVFIO_SESSION_PREFIX, &names);
        if (r < 0)
                luv_log_error(r, "The stored sessions cannot be listed");
        for (char **name = names; name && *name; name++) {
                while ((fd = luv_fd_store_take(u->config.store, *name)) >= 0)
                        safe_close(fd);
                r = luv_fd_store_remove(u->config.store, *name);
                if (r < 0)
                        luv_log_error(r, "The session %s cannot be taken out of the fd store", *name);
        }
}

/* An earlier run of this daemon ended in the middle of an update. */
void luv_update_roll_back(Update *u, const UpdateJournal *j)
{
        luv_log_struct(LOG_WARNING,
                       &(LogFields) {
                                       .message_id = LUVFIO_MESSAGE_UPDATE_ROLLED_BACK,
                                       .update_id = j->update_id,
                                       .state = j->state,
                       },
                       "luvfiod was ended while an update was %s: it is undone, machines run on", j->state);

        /* Machines first. */
        for (char **c = j->frozen; c && *c; c++)
                (void) luv_update_thaw(*c);
        for (size_t i = 0; i < j->n_machines; i++) {
                const JournalMachine *note = j->machines + i;
                MachineState state = luv_machine_state_from_string(note->state);
                Machine *m = luv_machine_registry_find(u->config.machines, note->name);

                if (!m || state == MACHINE_RUNNING)
                        continue;
                (void) luv_machine_set_reason(m, "luvfiod was restarted in the middle of an update");
                luv_machine_set_state(m, MACHINE_ABORTING);
        }
        drop_stored_sessions(u);

        if (j->image && !u->config.simulated && luv_kexec_loaded() > 0) {
                int r = luv_kexec_unload();

                if (r < 0)
                        luv_log_error(r, "The kernel image cannot be unloaded; a plain reboot would jump "
                                         "into it");
        }
        if (j->drained && u->units) {
                luv_units_start_and_forget(u->units, "default.target");
                for (char **unit = j->units; unit && *unit; unit++)
                        luv_units_start_and_forget(u->units, *unit);
                luv_units_stop_and_forget(u->units, LUVFIO_DRAIN_TARGET);
        }
        luv_update_journal_remove(u->config.runtime_dir);
}
