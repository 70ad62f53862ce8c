/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <inttypes.h>
#include <sys/utsname.h>

#include "report/messages.h"
#include "update/update-private.h"
#include "util/log.h"
#include "util/string-util.h"
#include "util/time-util.h"

/* Finishing: a machine's session when its VMM says that it runs, the host's when none is left that needs it.
 */

/* Early in this process the rate of the TSC on this side was not known. */
static int learn_tsc_rate(Update *u)
{
        TimelineAnchor now;
        int r;

        r = luv_timeline_anchor(&now);
        if (r >= 0 && u->timeline.incoming.tsc_khz == 0)
                u->timeline.incoming.tsc_khz = now.tsc_khz;
        return r;
}

/* 0: not known. */
static uint64_t blackout_of(Update *u, const Machine *m)
{
        uint64_t running = luv_timeline_to_outgoing(&u->timeline, m->running_usec);

        if (u->timeline.outgoing.boottime_usec == 0 || m->stopped_usec == 0 || running < m->stopped_usec)
                return 0;
        return running - m->stopped_usec;
}

static void machine_runs(UpdateMachine *um)
{
        Update *u = um->update;
        Machine *m = um->machine;
        _cleanup_free_ char *session = m->session ? NULL : TAKE_PTR(m->session_name);
        int r;

        um->incoming = false;
        um->late = false;
        um->finished = true;
        um->step = STEP_NONE;
        /* What is kept is what the next update needs. */
        for (size_t i = m->n_fds; i > 0; i--) {
                MachineFd *f = m->fds[i - 1];

                if (f->kind == FD_KIND_STATE || f->fd < 0)
                        luv_machine_drop_fd(m, f);
                else
                        f->outcome = luv_machine_fd_outcome(m, f);
        }
        if (luv_strv_extend(&u->finished, m->name) < 0 || luv_update_write_journal(u) < 0)
                luv_log_warning("That machine %s runs again is not noted for a restart of luvfiod", m->name);
        (void) learn_tsc_rate(u);
        luv_log_struct(LOG_NOTICE,
                       &(LogFields) {
                                       .message_id = LUVFIO_MESSAGE_MACHINE_RESUMED,
                                       .update_id = u->id,
                                       .machine = m->name,
                                       .session = session ? session : m->session_name,
                                       .duration_usec = blackout_of(u, m),
                       },
                       "Machine %s runs under the new kernel", m->name);
        luv_machine_set_state(m, MACHINE_RUNNING);
        luv_update_tell(um, MACHINE_EVENT_FINISHED, NULL);
        r = luv_machine_note(m);
        if (r < 0)
                luv_log_error(r, "Machine %s is not noted for a restart of luvfiod", m->name);
        if (u->callbacks.settled)
                u->callbacks.settled(m, u->userdata);
        luv_update_check_settled(u);
        luv_update_release_host_session(u);
}

static void on_finished(int error, void *userdata);

static int try_finish(UpdateMachine *um)
{
        um->finish_tries++;
        return luv_luo_session_finish(um->machine->session, luv_now_usec() + FINISH_DEADLINE_USEC,
                                      on_finished, um, &um->call);
}

static int on_finish_again(sd_event_source *s, uint64_t usec, void *userdata)
{
        UpdateMachine *um = userdata;
        int r;

        um->retry = sd_event_source_disable_unref(um->retry);
        r = try_finish(um);
        if (r < 0)
                on_finished(r, um);
        return 0;
}

static void on_finished(int error, void *userdata)
{
        UpdateMachine *um = userdata;
        Machine *m = um->machine;
        int r;

        um->call = luv_luo_call_free(um->call);
        if (error < 0) {
                luv_log_struct(LOG_WARNING,
                               &(LogFields) { .machine = m->name,
                                              .session = m->session_name,
                                              .error = error },
                               "The session %s of machine %s cannot be finished: %s", m->session_name,
                               m->name, strerror(-error));
                if (um->finish_tries < FINISH_TRIES &&
                    sd_event_add_time_relative(um->update->config.event, &um->retry, CLOCK_BOOTTIME,
                                               FINISH_RETRY_USEC, 0, on_finish_again, um) >= 0)
                        return;
                (void) luv_machine_set_reason(
                                m, "its session could not be finished and stays until the next reboot: %s",
                                strerror(-error));
        } else {
                r = luv_fd_store_remove(um->update->config.store, m->session_name);
                if (r < 0)
                        luv_log_error(r, "The session %s cannot be taken out of the fd store",
                                      m->session_name);
                m->session = luv_luo_session_unref(m->session);
        }
        machine_runs(um);
}

int luv_update_resumed_incoming(UpdateMachine *um, uint64_t running_usec)
{
        Machine *m = um->machine;
        int r;

        if (!um->incoming || um->step == STEP_WORKING || !m->session)
                return -EPROTO;
        for (size_t i = 0; i < m->n_fds; i++)
                if (m->fds[i]->fd < 0 && m->fds[i]->outcome != FD_OUTCOME_REBUILT)
                        luv_log_warning("Machine %s resumed without its file \"%s\", which is given up",
                                        m->name, m->fds[i]->name);
        m->running_usec = running_usec;
        um->step = STEP_WORKING;
        um->finish_tries = 0;
        r = try_finish(um);
        if (r < 0) {
                um->step = STEP_NONE;
                return r;
        }
        return 1;
}

/* The host's session lists the machines: it is needed as long as one of them may have to be found again. */
static void on_host_finished(int error, void *userdata);

static int try_host_finish(Update *u)
{
        u->host_finish_tries++;
        return luv_luo_session_finish(u->incoming_host_session, luv_now_usec() + FINISH_DEADLINE_USEC,
                                      on_host_finished, u, &u->incoming_call);
}

static int on_host_finish_again(sd_event_source *s, uint64_t usec, void *userdata)
{
        Update *u = userdata;
        int r;

        u->host_finish_retry = sd_event_source_disable_unref(u->host_finish_retry);
        r = try_host_finish(u);
        if (r < 0)
                on_host_finished(r, u);
        return 0;
}

static void end_update(Update *u);

static void on_host_finished(int error, void *userdata)
{
        Update *u = userdata;
        int r;

        u->incoming_call = luv_luo_call_free(u->incoming_call);
        if (error < 0) {
                luv_log_error(error, "The session " LUVFIO_HOST_SESSION " cannot be finished");
                if (u->host_finish_tries < FINISH_TRIES &&
                    sd_event_add_time_relative(u->config.event, &u->host_finish_retry, CLOCK_BOOTTIME,
                                               FINISH_RETRY_USEC, 0, on_host_finish_again, u) >= 0)
                        return;
        }
        u->incoming_host_session = luv_luo_session_unref(u->incoming_host_session);
        r = luv_fd_store_remove(u->config.store, LUVFIO_HOST_SESSION);
        if (r < 0)
                luv_log_error(r, "The session " LUVFIO_HOST_SESSION " cannot be taken out of the fd store");
        u->host = luv_host_record_free(u->host);
        u->finished = luv_strv_free(u->finished);
        if (u->state == UPDATE_FINISHING)
                end_update(u);
        else if (u->state == UPDATE_IDLE)
                luv_update_journal_remove(u->config.runtime_dir);
}

static size_t count_stranded(Update *u)
{
        size_t n = luv_machine_registry_size(u->config.machines), k = 0;

        for (size_t i = 0; i < n; i++) {
                Machine *m = luv_machine_registry_at(u->config.machines, i);
                UpdateMachine *um = m->update;

                k += um && um->incoming;
        }
        return k;
}

/* The last stranded machine came back or was given up, after the update had ended. */
void luv_update_release_host_session(Update *u)
{
        int r;

        if (u->state != UPDATE_IDLE || !u->incoming_host_session || u->incoming_call ||
            count_stranded(u) > 0)
                return;
        u->host_finish_tries = 0;
        r = try_host_finish(u);
        if (r < 0)
                on_host_finished(r, u);
}

static int report_machine(Update *u, Report *report, Machine *m)
{
        const Timeline *t = &u->timeline;
        uint64_t begin = t->started_usec, stopped = m->stopped_usec, running, registered, arrived, left;
        int r;

        if (m->state == MACHINE_STRANDED || m->running_usec == 0)
                return luv_report_add_machine(report, m->name, UINT64_MAX,
                                              m->state == MACHINE_STRANDED ? strempty(m->reason) : NULL);
        left = t->outgoing.boottime_usec;
        arrived = luv_timeline_to_outgoing(t, t->incoming.boottime_usec);
        running = luv_timeline_to_outgoing(t, m->running_usec);
        registered = luv_timeline_to_outgoing(t, m->registered_usec);
        registered = MIN(registered, running);
        registered = MAX(registered, arrived);
        if (stopped == 0 || stopped > left)
                stopped = left;
        r = luv_report_add_machine(report, m->name, running - MIN(running, stopped), NULL);
        if (r >= 0)
                r = luv_report_add_phase(report, "stop", m->name, stopped - MIN(stopped, begin),
                                         left - stopped);
        if (r >= 0)
                r = luv_report_add_phase(report, "kernel", m->name, left - MIN(left, begin), arrived - left);
        if (r >= 0)
                r = luv_report_add_phase(report, "wait", m->name, arrived - MIN(arrived, begin),
                                         registered - arrived);
        if (r >= 0)
                r = luv_report_add_phase(report, "resume", m->name, registered - MIN(registered, begin),
                                         running - MIN(running, registered));
        return r;
}

static int make_report(Update *u, ReportResult result, Report **ret)
{
        _cleanup_(luv_report_freep) Report *report = NULL;
        size_t n = luv_machine_registry_size(u->config.machines);
        const Timeline *t = &u->timeline;
        struct utsname name;
        int r;

        r = learn_tsc_rate(u);
        if (r < 0)
                return r;
        if (uname(&name) < 0)
                return negative_errno();
        r = luv_report_new(strempty(u->id), result, NULL, strempty(u->from_kernel),
                           u->config.simulated && u->to_kernel ? u->to_kernel : name.release, &report);
        if (r >= 0)
                r = luv_report_set_timeline(report, t);
        if (r >= 0) {
                uint64_t left = t->outgoing.boottime_usec,
                         arrived = luv_timeline_to_outgoing(t, t->incoming.boottime_usec);

                r = luv_report_add_phase(report, "kernel", NULL, left - MIN(left, t->started_usec),
                                         arrived - MIN(left, arrived));
        }
        for (size_t i = 0; i < n && r >= 0; i++) {
                Machine *m = luv_machine_registry_at(u->config.machines, i);
                UpdateMachine *um = m->update;

                if (um && (um->incoming || um->finished))
                        r = report_machine(u, report, m);
        }
        if (r < 0)
                return r;
        luv_report_sort(report);
        *ret = TAKE_PTR(report);
        return 0;
}

static void end_update(Update *u)
{
        size_t n = luv_machine_registry_size(u->config.machines), n_stranded = count_stranded(u);
        Report *report = NULL;
        int r;

        luv_timeline_end(&u->timeline, luv_update_state_to_string(UPDATE_FINISHING), NULL, luv_now_usec());
        r = make_report(u, n_stranded > 0 ? REPORT_STRANDED : REPORT_DONE, &report);
        luv_log_struct(n_stranded > 0 ? LOG_ERR : LOG_NOTICE,
                       &(LogFields) {
                                       .message_id = n_stranded > 0 ? LUVFIO_MESSAGE_UPDATE_STRANDED
                                                                    : LUVFIO_MESSAGE_UPDATE_DONE,
                                       .update_id = u->id,
                       },
                       n_stranded > 0 ? "Update %s is done, but %zu machines are stranded"
                                      : "Update %s is done, all machines run (%zu stranded)",
                       strempty(u->id), n_stranded);
        (void) luv_update_transition(u, UPDATE_IDLE);
        if (r < 0)
                luv_log_error(r, "The report of update %s is lost", strempty(u->id));
        else
                luv_update_keep_report(u, report);
        if (n_stranded == 0)
                luv_update_journal_remove(u->config.runtime_dir);
        luv_update_ended(u, UPDATE_END_DONE, NULL, report);
        for (size_t i = 0; i < n; i++) {
                UpdateMachine *um = luv_machine_registry_at(u->config.machines, i)->update;

                if (um)
                        um->finished = false;
        }
        luv_update_reset(u);
}

void luv_update_finish(Update *u)
{
        int r;

        r = luv_update_transition(u, UPDATE_FINISHING);
        if (r < 0)
                return;
        u->deadline_source = sd_event_source_disable_unref(u->deadline_source);
        /* Those outside of default.target stay dead otherwise; the others are being started already. */
        for (char **unit = u->host ? u->host->units : NULL; unit && *unit && u->units; unit++)
                luv_units_start_and_forget(u->units, *unit);
        if (count_stranded(u) > 0 || !u->incoming_host_session) {
                end_update(u);
                return;
        }
        u->host_finish_tries = 0;
        r = try_host_finish(u);
        if (r < 0)
                on_host_finished(r, u);
}

/* Discard. */

static void discard_end(UpdateMachine *um, int error, const char *reason)
{
        UpdateDiscardDone done = um->discard_done;
        void *userdata = um->discard_userdata;
        Update *u = um->update;
        Machine *m = um->machine;

        um->discard_done = NULL;
        if (error >= 0) {
                luv_log_struct(LOG_NOTICE,
                               &(LogFields) {
                                               .message_id = LUVFIO_MESSAGE_MACHINE_DISCARDED,
                                               .machine = m->name,
                                               .session = m->session_name,
                               },
                               m->session ? "Machine %s was given up, its memory is freed"
                                          : "Machine %s was given up",
                               m->name);
                if (u->lost && luv_strv_extend(&u->given_up, m->name) < 0)
                        luv_log_error(-ENOMEM, "That machine %s was given up is not noted", m->name);
                luv_machine_forget(m);
                luv_update_release_host_session(u);
        }
        done(error, reason, userdata);
}

static void recover_next(UpdateMachine *um);

static void on_recovered(const PluginResult *result, void *userdata)
{
        UpdateMachine *um = userdata;
        const MachineDevice *d = um->machine->devices + um->recovering;

        um->recover = luv_plugin_call_free(um->recover);
        /* Its DMA is stopped in any case; keeping the machine for ever helps nobody. */
        if (result->error < 0)
                luv_log_struct(LOG_WARNING,
                               &(LogFields) { .machine = um->machine->name,
                                              .device = d->address,
                                              .plugin = d->plugin },
                               "Device %s of machine %s could not be made safe by its plugin: %s",
                               d->address, um->machine->name,
                               result->reason ? result->reason : strerror(-result->error));
        um->recovering++;
        recover_next(um);
}

static void recover_next(UpdateMachine *um)
{
        Machine *m = um->machine;
        int r;

        while (um->recovering < m->n_devices && !m->devices[um->recovering].plugin)
                um->recovering++;
        if (um->recovering == m->n_devices) {
                discard_end(um, 0, NULL);
                return;
        }
        r = luv_plugin_call(um->update->config.plugins, PLUGIN_OP_RECOVER, m->devices[um->recovering].plugin,
                            m->devices[um->recovering].address, m->devices[um->recovering].plan,
                            FD_PRESERVED_UNKNOWN, luv_now_usec() + RESTORE_DEADLINE_USEC, on_recovered, um,
                            &um->recover);
        if (r < 0)
                discard_end(um, r, "the plugin cannot be asked");
}

static void on_discard_finished(int error, void *userdata)
{
        UpdateMachine *um = userdata;
        Machine *m = um->machine;
        _cleanup_free_ char *reason = NULL;
        int r;

        um->call = luv_luo_call_free(um->call);
        if (error < 0) {
                reason = luv_strf("the session %s of machine %s cannot be finished: %s", m->session_name,
                                  m->name, strerror(-error));
                discard_end(um, error, reason);
                return;
        }
        r = luv_fd_store_remove(um->update->config.store, m->session_name);
        if (r < 0)
                luv_log_error(r, "The session %s cannot be taken out of the fd store", m->session_name);
        recover_next(um);
}

int luv_update_discard(Update *u, Machine *m, UpdateDiscardDone done, void *userdata)
{
        UpdateMachine *um = m->update;
        int r;

        if (m->state != MACHINE_STRANDED || !um || um->discard_done)
                return -EPROTO;
        um->discard_done = done;
        um->discard_userdata = userdata;
        um->recovering = 0;
        if (!m->session) {
                recover_next(um);
                return 0;
        }
        /*
         * The session first: until it is finished, the kernel drops what is written to a device that nobody
         * has taken over, and refuses to reset it. It stops the device's DMA itself before it frees the
         * memory.
         */
        r = luv_luo_session_finish(m->session, luv_now_usec() + FINISH_DEADLINE_USEC, on_discard_finished,
                                   um, &um->call);
        if (r < 0)
                discard_end(um, r, "its session cannot be finished");
        return 0;
}
