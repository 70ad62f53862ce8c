/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <inttypes.h>
#include <sys/utsname.h>

#include "report/history.h"
#include "report/messages.h"
#include "update/update-private.h"
#include "util/io.h"
#include "util/log.h"
#include "util/string-util.h"
#include "util/time-util.h"

/* After the jump: sessions and devices come back, then VMMs take what is theirs. */

static size_t count_state(Update *u, MachineState state)
{
        size_t n = luv_machine_registry_size(u->config.machines), k = 0;

        for (size_t i = 0; i < n; i++)
                k += luv_machine_registry_at(u->config.machines, i)->state == state;
        return k;
}

void luv_update_strand(UpdateMachine *um, const char *reason)
{
        Machine *m = um->machine;

        (void) luv_machine_set_reason(m, "%s", reason);
        luv_log_struct(LOG_ERR,
                       &(LogFields) {
                                       .message_id = LUVFIO_MESSAGE_MACHINE_STRANDED,
                                       .update_id = um->update->id,
                                       .session = m->session_name,
                                       .machine = m->name,
                       },
                       "Machine %s is stranded, its memory is kept and its devices are not touched: %s",
                       m->name, reason);
        luv_machine_set_state(m, MACHINE_STRANDED);
        if (um->update->callbacks.settled)
                um->update->callbacks.settled(m, um->update->userdata);
        luv_update_check_settled(um->update);
}

/* Whether every machine runs or is stranded by now; then the update ends. */
void luv_update_check_settled(Update *u)
{
        if (u->state != UPDATE_RESUMING || count_state(u, MACHINE_RESTORING) > 0 ||
            count_state(u, MACHINE_RESUMING) > 0)
                return;
        luv_update_finish(u);
}

static int on_resume_deadline(sd_event_source *s, uint64_t usec, void *userdata)
{
        Update *u = userdata;

        u->deadline_source = sd_event_source_disable_unref(u->deadline_source);
        for (size_t i = luv_machine_registry_size(u->config.machines); i > 0; i--) {
                Machine *m = luv_machine_registry_at(u->config.machines, i - 1);
                UpdateMachine *um = m->update;
                _cleanup_free_ char *reason = NULL;

                if (!um || !um->incoming || m->state != MACHINE_RESUMING)
                        continue;
                /* It said that it runs; what is left is ours. */
                if (um->step == STEP_WORKING)
                        continue;
                reason = luv_strf("its VMM did not come back and resume within %" PRIu64 " seconds%s%s",
                                  u->config.resume_deadline_usec / USEC_PER_SEC, um->unretrieved ? "; " : "",
                                  strempty(um->unretrieved));
                um->late = true;
                luv_update_strand(um, reason ? reason : "its VMM did not come back");
        }
        return 0;
}

static UpdateMachine *find_incoming(Update *u, const char *name)
{
        MachineOwner nobody = { .uid = (uid_t) -1, .pidfd = -EBADF };
        UpdateMachine *um;
        bool known;
        Machine *m;
        int r;

        m = luv_machine_registry_find(u->config.machines, name);
        known = m;
        if (!m) {
                r = luv_machine_new(u->config.machines, name, &nobody, MACHINE_RESTORING, &m);
                if (r < 0) {
                        luv_log_error(r, "Machine %s came over the jump and cannot be kept", name);
                        return NULL;
                }
        }
        um = luv_update_machine(u, m);
        if (!um || um->incoming)
                return um;
        um->incoming = true;
        um->known = known;
        /* Whatever it was noted as: until its session is there, nobody can say that it runs. */
        luv_machine_set_state(m, MACHINE_RESTORING);
        return um;
}

static bool is_finished(Update *u, const char *name)
{
        return luv_strv_contains(u->finished, name);
}

static void on_found(const HostRecord *host, void *userdata)
{
        Update *u = userdata;

        if (luv_free_and_strdup(&u->id, host->update_id) < 0)
                luv_log_error(-ENOMEM, "The update's id is lost");
        luv_log_struct(LOG_NOTICE, &(LogFields) { .update_id = host->update_id },
                       "Update %s made the jump from kernel %s, %zu machines came along", host->update_id,
                       host->from_kernel, host->n_sessions);
        for (size_t i = 0; i < host->n_sessions; i++)
                if (!is_finished(u, host->sessions[i].machine))
                        (void) find_incoming(u, host->sessions[i].machine);
        (void) luv_update_transition(u, UPDATE_REBINDING);
        u->knows_machines = true;
        if (u->callbacks.settled)
                u->callbacks.settled(NULL, u->userdata);
}

static int take_record(UpdateMachine *um, MachineRecord *record, LuoSession *session)
{
        Machine *m = um->machine;
        int r = 0;

        if (record)
                r = luv_machine_set_record(m, record);
        luv_luo_session_unref(m->session);
        m->session = session;
        if (session && r >= 0)
                r = luv_free_and_strdup(&m->session_name, luv_luo_session_get_name(session));
        luv_machine_record_free(record);
        return r;
}

static void on_ready(MachineRecord *record, LuoSession *session, void *userdata)
{
        Update *u = userdata;
        UpdateMachine *um;
        Machine *m;
        int r;

        if (is_finished(u, record->name)) {
                luv_machine_record_free(record);
                luv_luo_session_unref(session);
                return;
        }
        um = find_incoming(u, record->name);
        if (!um) {
                luv_machine_record_free(record);
                luv_luo_session_unref(session);
                return;
        }
        m = um->machine;
        r = take_record(um, record, session);
        if (r < 0) {
                luv_update_strand(um, "out of memory");
                return;
        }
        um->step = STEP_NONE;
        luv_machine_set_state(m, MACHINE_RESUMING);
        luv_update_tell(um, MACHINE_EVENT_RESUME, NULL);
        if (u->callbacks.settled)
                u->callbacks.settled(m, u->userdata);
}

static void on_stranded(const char *machine, const char *reason, MachineRecord *record, LuoSession *session,
                        void *userdata)
{
        Update *u = userdata;
        UpdateMachine *um;

        um = is_finished(u, machine) ? NULL : find_incoming(u, machine);
        if (!um) {
                luv_machine_record_free(record);
                luv_luo_session_unref(session);
                return;
        }
        if (take_record(um, record, session) < 0)
                luv_log_error(-ENOMEM, "The record of machine %s is lost", machine);
        luv_update_strand(um, reason);
}

/*
 * luvfiod was killed after the machine's FINISH, and before it had noted so. Only what confirmed that it
 * runs is finished, so its VMM is one that is known from before.
 */
static void on_gone(const char *machine, void *userdata)
{
        Update *u = userdata;
        UpdateMachine *um;

        if (is_finished(u, machine))
                return;
        um = find_incoming(u, machine);
        if (!um)
                return;
        if (!um->known) {
                luv_update_strand(um, "the kernel has no session of it");
                return;
        }
        um->incoming = false;
        um->finished = true;
        luv_machine_set_state(um->machine, MACHINE_RUNNING);
        if (u->callbacks.settled)
                u->callbacks.settled(um->machine, u->userdata);
        if (luv_strv_extend(&u->finished, machine) < 0)
                luv_log_error(-ENOMEM, "That machine %s runs again is not noted", machine);
        luv_log_info("Machine %s had been finished already", machine);
}

/* What is lost for good is found lost by every later run of the daemon in this boot. */
static bool was_reported(Update *u, const char *reason)
{
        _cleanup_(luv_report_freep) Report *last = NULL;
        uint64_t booted = luv_realtime_usec() - luv_now_usec();

        if (luv_history_find(u->config.state_dir, NULL, &last) < 0)
                return false;
        return last->result == REPORT_STRANDED && streq_ptr(last->reason, reason) &&
               last->started_realtime_usec >= booted;
}

/*
 * Which machines there were is not known then. Their memory and devices stay as they are until a reboot, and
 * whoever registers is stranded too, if it is not given up: it may have been one of them, and must not find
 * itself started afresh without a word.
 */
static void lose_host_record(Update *u, int error, const char *reason)
{
        _cleanup_free_ char *text =
                        luv_strf("the host's record of the update cannot be read, all its machines are "
                                 "stranded: %s",
                                 reason);
        char id[LUVFIO_ID_SIZE];
        struct utsname name;
        Report *report;
        int r;

        luv_log_struct(LOG_ERR,
                       &(LogFields) { .message_id = LUVFIO_MESSAGE_UPDATE_STRANDED, .error = error }, "%s",
                       text ? text : reason);
        if (luv_free_and_strdup(&u->lost, text ? text : reason) < 0 || uname(&name) < 0 ||
            was_reported(u, u->lost))
                return;
        luv_random_id(id);
        r = luv_report_new(id, REPORT_STRANDED, u->lost, "", name.release, &report);
        if (r < 0) {
                luv_log_error(r, "The report of this is lost");
                return;
        }
        report->started_realtime_usec = luv_realtime_usec();
        luv_update_keep_report(u, report);
}

static void on_done(int error, const char *reason, HostRecord *host, LuoSession *host_session,
                    void *userdata)
{
        Update *u = userdata;

        u->restore = luv_restore_free(u->restore);
        u->knows_machines = true;
        u->incoming_host_session = host_session;
        luv_host_record_free(u->host);
        u->host = host;
        if (error < 0 || !host) {
                /* Nothing is known of any machine. A cold boot ends here too. */
                if (error != -ENOENT) {
                        lose_host_record(u, error, reason ? reason : strerror(-error));
                        /* The next update's is stored under the same name. The kernel keeps this one. */
                        (void) luv_fd_store_remove(u->config.store, LUVFIO_HOST_SESSION);
                }
                (void) luv_update_transition(u, UPDATE_IDLE);
                luv_update_journal_remove(u->config.runtime_dir);
                u->host = luv_host_record_free(u->host);
                u->incoming_host_session = luv_luo_session_unref(u->incoming_host_session);
                luv_update_reset(u);
                if (u->callbacks.settled)
                        u->callbacks.settled(NULL, u->userdata);
                return;
        }

        /* The old kernel's half of the time goes before ours. */
        {
                Timeline own = u->timeline;

                u->timeline = host->timeline;
                host->timeline = (Timeline) {};
                u->timeline.incoming = own.incoming;
                for (size_t i = 0; i < own.n_phases; i++) {
                        const TimelinePhase *p = own.phases + i;

                        if (luv_timeline_begin(&u->timeline, p->name, p->machine, true, p->start_usec) >=
                                            0 &&
                            p->end_usec > 0)
                                luv_timeline_end(&u->timeline, p->name, p->machine, p->end_usec);
                }
                luv_timeline_done(&own);
        }
        if (luv_free_and_strdup(&u->from_kernel, host->from_kernel) < 0 ||
            luv_free_and_strdup(&u->to_kernel, host->to_kernel) < 0)
                luv_log_error(-ENOMEM, "The kernels' names are lost");
        (void) luv_update_transition(u, UPDATE_RESUMING);
        (void) luv_update_write_journal(u);
        /* Bringing devices back took longer than VMMs have: those that are ready get a moment all the same.
         */
        if (!u->deadline_source &&
            sd_event_add_time_relative(u->config.event, &u->deadline_source, CLOCK_BOOTTIME, USEC_PER_SEC, 0,
                                       on_resume_deadline, u) < 0)
                luv_log_warning("Machines whose VMM does not come back will not be noticed");
        luv_update_check_settled(u);
}

static const RestoreCallbacks restore_callbacks = {
        .found = on_found,
        .ready = on_ready,
        .gone = on_gone,
        .stranded = on_stranded,
        .done = on_done,
};

void luv_update_restore(Update *u)
{
        uint64_t now = luv_now_usec();
        int r;

        r = luv_timeline_anchor(&u->timeline.incoming);
        /* An earlier run of this daemon saw the new kernel first. */
        if (u->journal && u->journal->incoming) {
                u->timeline.incoming = u->journal->anchor;
                u->finished = TAKE_PTR(u->journal->finished);
        }
        u->timeline.started_usec = now;
        if (r >= 0)
                r = luv_update_transition(u, UPDATE_RESTORING);
        if (r >= 0)
                r = sd_event_add_time(u->config.event, &u->deadline_source, CLOCK_BOOTTIME,
                                      now + u->config.resume_deadline_usec, 0, on_resume_deadline, u);
        if (r >= 0)
                r = luv_restore_start(u->config.event, u->config.luo, u->config.store, u->config.plugins,
                                      now + RESTORE_DEADLINE_USEC, &restore_callbacks, u, &u->restore);
        if (r < 0)
                on_done(r, NULL, NULL, NULL, u);
}

int luv_update_start(Update *u, bool jumped)
{
        _cleanup_free_ char *boot_id = NULL, *reason = NULL;
        int r;

        r = luv_boot_id(&boot_id);
        if (r < 0)
                return luv_log_error(r, "This boot's id cannot be read");
        if (jumped) {
                luv_update_end_old_machines(u);
                luv_machine_registry_clear_notes(u->config.machines);
        } else {
                r = luv_update_journal_read(u->config.runtime_dir, &u->journal, &reason);
                if (r < 0 && r != -ENOENT)
                        luv_log_warning("%s/" LUVFIO_JOURNAL_FILE " is not used: %s", u->config.runtime_dir,
                                        reason ? reason : strerror(-r));
                if (u->journal && !streq(u->journal->boot_id, boot_id))
                        u->journal = luv_update_journal_free(u->journal);
                r = luv_machine_registry_load(u->config.machines);
                if (r < 0)
                        luv_log_error(r, "Machines registered before cannot be read");
                if (u->journal && !u->journal->incoming) {
                        luv_update_roll_back(u, u->journal);
                        u->journal = luv_update_journal_free(u->journal);
                }
        }
        luv_update_restore(u);
        return 0;
}

/* VMMs. */

bool luv_update_may_be_lost(const Update *u, const char *name)
{
        return u->lost && !luv_strv_contains(u->given_up, name);
}

int luv_update_strand_lost(Update *u, Machine *m)
{
        _cleanup_free_ char *reason = NULL;
        UpdateMachine *um;

        um = luv_update_machine(u, m);
        reason = luv_strf("%s; where it was one of them, its memory and devices are kept until the host is "
                          "rebooted. Given up (luvfioctl discard %s) it can start afresh",
                          u->lost, m->name);
        if (!um || !reason)
                return -ENOMEM;
        um->incoming = true;
        luv_update_strand(um, reason);
        return 0;
}

int luv_update_returned(Update *u, Machine *m)
{
        UpdateMachine *um = m->update;

        if (!um || !um->incoming)
                return 0;
        if (m->state == MACHINE_STRANDED) {
                if (!um->late || !m->session)
                        return -ESTALE;
                luv_log_struct(LOG_NOTICE,
                               &(LogFields) {
                                               .message_id = LUVFIO_MESSAGE_MACHINE_RETURNED,
                                               .machine = m->name,
                                               .session = m->session_name,
                               },
                               "The VMM of machine %s came back late", m->name);
                (void) luv_machine_set_reason(m, NULL);
                luv_machine_set_state(m, MACHINE_RESUMING);
        }
        if (m->registered_usec == 0)
                m->registered_usec = luv_now_usec();
        /* Its memory is charged where it runs, from the first page on. */
        if (m->session && m->owner.cgroup)
                return luv_luo_session_set_cgroup(m->session, m->owner.cgroup);
        return 0;
}

struct UpdateRetrieve {
        UpdateMachine *um;
        UpdateRetrieve *next;
        UpdateRetrieveDone done;
        void *userdata;
        char *name;
        LuoCall *call;
        sd_event_source *source; /* answer without asking the kernel, or try again */
        char *refusal;
        uint64_t deadline;
};

static void retrieve_end(UpdateRetrieve *q, int error, const char *reason, const MachineFd *f)
{
        q->call = luv_luo_call_free(q->call);
        q->source = sd_event_source_disable_unref(q->source);
        /* Frees Q. */
        q->done(error, reason, f, q->userdata);
}

void luv_update_give_up_retrieves(UpdateMachine *um)
{
        while (um->retrieves)
                retrieve_end(um->retrieves, -ECANCELED, "its machine was given up", NULL);
}

static int retrieve_try(UpdateRetrieve *q);

static int on_retrieve_again(sd_event_source *s, uint64_t usec, void *userdata)
{
        UpdateRetrieve *q = userdata;
        int r;

        q->source = sd_event_source_disable_unref(q->source);
        r = retrieve_try(q);
        if (r < 0)
                retrieve_end(q, r, strerror(-r), NULL);
        return 0;
}

static void on_retrieved(int error, int fd, void *userdata)
{
        UpdateRetrieve *q = userdata;
        UpdateMachine *um = q->um;
        _cleanup_close_ int own = fd;
        _cleanup_free_ char *reason = NULL;
        FdIdentity identity;
        MachineFd *f;
        int r;

        q->call = luv_luo_call_free(q->call);
        f = luv_machine_find_fd(um->machine, q->name);
        if (!f) {
                retrieve_end(q, -ENOENT, "it is gone", NULL);
                return;
        }
        if (error == -EAGAIN && luv_usec_left(q->deadline) > 0) {
                r = sd_event_add_time_relative(um->update->config.event, &q->source, CLOCK_BOOTTIME,
                                               RETRY_USEC, 0, on_retrieve_again, q);
                if (r >= 0)
                        return;
                error = r;
        }
        if (error < 0) {
                reason = luv_strf("the kernel does not give it back (token %" PRIu64 "): %s", f->token,
                                  error == -ETIME   ? "it took too long"
                                  : error == -EPIPE ? "the worker process died"
                                                    : strerror(-error));
                free(um->unretrieved);
                um->unretrieved = luv_strf("its file \"%s\": %s", q->name, strempty(reason));
                retrieve_end(q, error, reason, NULL);
                return;
        }
        /* A call of another connection was faster. */
        if (f->fd < 0) {
                r = luv_fd_identify(own, um->update->config.simulated, &identity, &reason);
                if (r < 0) {
                        retrieve_end(q, r, reason, NULL);
                        return;
                }
                luv_machine_set_retrieved(um->machine, f, &identity, TAKE_FD(own));
        }
        retrieve_end(q, 0, NULL, f);
}

static int retrieve_try(UpdateRetrieve *q)
{
        MachineFd *f = luv_machine_find_fd(q->um->machine, q->name);

        if (!f)
                return -ENOENT;
        return luv_luo_session_retrieve_fd(q->um->machine->session, f->token, q->deadline, on_retrieved, q,
                                           &q->call);
}

static int on_held(sd_event_source *s, void *userdata)
{
        UpdateRetrieve *q = userdata;
        MachineFd *f = luv_machine_find_fd(q->um->machine, q->name);

        if (q->refusal)
                retrieve_end(q, -ENOMEM, q->refusal, NULL);
        else
                retrieve_end(q, f ? 0 : -ENOENT, f ? NULL : "it is gone", f);
        return 0;
}

/* A charge that fails is final, and the memory is lost: so there has to be room. */
static int check_headroom(Machine *m, const MachineFd *f, char **ret_reason)
{
        uint64_t headroom;
        int r;

        if (f->kind != FD_KIND_MEMFD || !m->owner.cgroup)
                return 0;
        r = luv_memory_headroom(m->owner.cgroup, &headroom);
        if (r < 0 || f->identity.size <= headroom)
                return r;
        return luv_reason(ret_reason, -ENOMEM,
                          "it takes %" PRIu64 " MiB, and the control group %s may take %" PRIu64
                          " MiB more; nothing was tried, raise MemoryMax=",
                          f->identity.size >> 20, m->owner.cgroup, headroom >> 20);
}

int luv_update_retrieve(Update *u, Machine *m, const char *name, UpdateRetrieveDone done, void *userdata,
                        UpdateRetrieve **ret)
{
        _cleanup_(luv_update_retrieve_freep) UpdateRetrieve *q = NULL;
        UpdateMachine *um = m->update;
        MachineFd *f;
        int r;

        f = luv_machine_find_fd(m, name);
        if (!f)
                return -ENOENT;
        if (f->outcome == FD_OUTCOME_REBUILT && f->fd < 0)
                return -ENODATA;
        if (!um || !m->session)
                return -EPROTO;
        q = calloc(1, sizeof(UpdateRetrieve));
        if (!q)
                return -ENOMEM;
        q->um = um;
        q->done = done;
        q->userdata = userdata;
        q->deadline = luv_now_usec() + RETRIEVE_DEADLINE_USEC;
        q->next = um->retrieves;
        um->retrieves = q;
        q->name = strdup(name);
        if (!q->name)
                return -ENOMEM;
        r = f->fd >= 0 ? 0 : check_headroom(m, f, &q->refusal);
        if (f->fd >= 0 || q->refusal)
                r = sd_event_add_defer(u->config.event, &q->source, on_held, q);
        else if (r >= 0)
                r = retrieve_try(q);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(q);
        return 0;
}

UpdateRetrieve *luv_update_retrieve_free(UpdateRetrieve *q)
{
        if (!q)
                return NULL;
        for (UpdateRetrieve **p = &q->um->retrieves; *p; p = &(*p)->next)
                if (*p == q) {
                        *p = q->next;
                        break;
                }
        luv_luo_call_free(q->call);
        sd_event_source_disable_unref(q->source);
        free(q->name);
        free(q->refusal);
        free(q);
        return NULL;
}
