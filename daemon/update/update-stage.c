/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <inttypes.h>

#include "update/update-private.h"
#include "util/log.h"
#include "util/string-util.h"
#include "util/time-util.h"

/* Staging: all that can be done while machines run. The slow part of an update, outside of the blackout. */

static int undo_image(Update *u)
{
        int r;

        if (u->config.simulated)
                return 0;
        r = luv_kexec_unload();
        if (r < 0)
                luv_log_error(r, "The kernel image cannot be unloaded; a plain reboot would jump into it");
        return r;
}

static int undo_host_session(Update *u)
{
        u->host_call = luv_luo_call_free(u->host_call);
        u->host_retry = sd_event_source_disable_unref(u->host_retry);
        u->host_session = luv_luo_session_unref(u->host_session);
        return luv_fd_store_remove(u->config.store, LUVFIO_HOST_SESSION);
}

void luv_update_drop_session(UpdateMachine *um)
{
        Machine *m = um->machine;
        int r;

        um->fds_done = false;
        for (size_t i = 0; i < m->n_fds; i++)
                m->fds[i]->preserved = false;
        if (!m->session_name)
                return;
        m->session = luv_luo_session_unref(m->session);
        r = luv_fd_store_remove(um->update->config.store, m->session_name);
        if (r < 0)
                luv_log_error(r, "The session %s cannot be taken out of the fd store", m->session_name);
        free(m->session_name);
        m->session_name = NULL;
}

/* What was written while vCPUs stood is worth nothing once they run again. */
static void drop_states(Machine *m)
{
        for (size_t i = m->n_fds; i > 0; i--)
                if (m->fds[i - 1]->kind == FD_KIND_STATE)
                        luv_machine_drop_fd(m, m->fds[i - 1]);
}

static int undo_machines(Update *u)
{
        for (size_t i = luv_machine_registry_size(u->config.machines); i > 0; i--) {
                Machine *m = luv_machine_registry_at(u->config.machines, i - 1);
                UpdateMachine *um = m->update;

                if (!um || um->incoming)
                        continue;
                if (um->told && !um->sacrificed) {
                        if (m->state != MACHINE_RUNNING)
                                luv_machine_set_state(m, MACHINE_ABORTING);
                        luv_update_tell(um, MACHINE_EVENT_ABORT, u->reason);
                }
                luv_update_drop_session(um);
                drop_states(m);
                /* Nobody is left to run it on. */
                if (m->exited)
                        luv_machine_forget(m);
        }
        return 0;
}

static void fail_session(UpdateMachine *um, int error, const char *what)
{
        Machine *m = um->machine;

        luv_update_fail(um->update, um, "%s of machine %s: %s", what, m->name,
                        error == -ETIME    ? "it took too long"
                        : error == -EPIPE  ? "the worker process died"
                        : error == -ENOSPC ? "the service manager's fd store is full"
                        : error == -EBUSY ? "another session holds the file, or its device is in use by LUO "
                                            "already"
                                          : strerror(-error));
}

/* Workers. */

void luv_update_release_worker(UpdateMachine *um)
{
        if (!um->working)
                return;
        um->working = false;
        um->update->n_working--;
}

static void start_work(UpdateMachine *um);

void luv_update_run_queue(Update *u)
{
        size_t n = luv_machine_registry_size(u->config.machines);

        for (size_t i = 0; i < n && u->n_working < LUO_PARALLEL && !u->aborting; i++) {
                UpdateMachine *um = luv_machine_registry_at(u->config.machines, i)->update;

                if (!um || um->step != STEP_QUEUED)
                        continue;
                um->step = STEP_WORKING;
                um->working = true;
                u->n_working++;
                start_work(um);
        }
}

void luv_update_queue(UpdateMachine *um)
{
        um->step = STEP_QUEUED;
        luv_update_run_queue(um->update);
}

static void fds_done(UpdateMachine *um)
{
        Update *u = um->update;

        um->fds_done = true;
        luv_update_release_worker(um);
        if (um->machine->state == MACHINE_QUIESCED) {
                luv_update_quiesce_fds_done(um);
        } else {
                luv_machine_set_state(um->machine, MACHINE_PREPARED);
                luv_update_set_step(um, STEP_DONE);
        }
        luv_update_run_queue(u);
}

/* In which state a kind is preserved: a device not before its interrupts are off. */
static bool is_due(const Machine *m, const MachineFd *f)
{
        if (f->preserved || f->outcome == FD_OUTCOME_REBUILT)
                return false;
        if (m->state == MACHINE_QUIESCED)
                return true;
        return f->kind == FD_KIND_MEMFD || f->kind == FD_KIND_IOMMUFD;
}

static void on_preserved(int error, void *userdata)
{
        UpdateMachine *um = userdata;
        MachineFd *f = um->preserving;

        um->call = luv_luo_call_free(um->call);
        um->preserving = NULL;
        if (error < 0) {
                _cleanup_free_ char *what = luv_strf("cannot preserve %s \"%s\"%s%s (token %" PRIu64 ")",
                                                     luv_fd_kind_to_string(f->kind), f->name,
                                                     f->identity.device[0] ? ", device " : "",
                                                     f->identity.device, f->token);

                fail_session(um, error, what ? what : "cannot preserve a file");
                return;
        }
        luv_update_preserve_next(um);
}

/*
 * Holes are filled by the kernel, which does not fail when memory runs out but stands still: so it is asked
 * before, each time. The size counts as it is now, whatever it was when the file was handed over.
 */
static int check_memory(UpdateMachine *um, MachineFd *f, uint64_t *ret_holes, char **ret_reason)
{
        uint64_t available, reserve, headroom = UINT64_MAX, holes;
        FdIdentity now;
        int r;

        r = luv_fd_identify(f->fd, um->update->config.simulated, &now, ret_reason);
        if (r < 0)
                return r;
        holes = now.size - MIN(now.size, now.allocated);
        *ret_holes = holes;
        f->identity.size = now.size;
        f->identity.allocated = now.allocated;
        if (holes == 0)
                return 0;
        r = luv_memory_available(&available, &reserve);
        if (r < 0)
                return r;
        if (holes > available - MIN(available, reserve))
                return luv_reason(ret_reason, -ENOMEM,
                                  "filling its holes takes %" PRIu64 " MiB, and %" PRIu64 " MiB can be had",
                                  holes >> 20, (available - MIN(available, reserve)) >> 20);
        if (um->machine->owner.cgroup)
                (void) luv_memory_headroom(um->machine->owner.cgroup, &headroom);
        if (holes > headroom)
                return luv_reason(ret_reason, -ENOMEM,
                                  "filling its holes takes %" PRIu64
                                  " MiB, and its control group may take %" PRIu64 " MiB more",
                                  holes >> 20, headroom >> 20);
        return 0;
}

void luv_update_preserve_next(UpdateMachine *um)
{
        Update *u = um->update;
        Machine *m = um->machine;
        MachineFd *f = NULL;
        uint64_t holes = 0;
        int r;

        for (size_t i = 0; i < m->n_fds && !f; i++)
                if (is_due(m, m->fds[i]))
                        f = m->fds[i];
        if (!f) {
                fds_done(um);
                return;
        }
        if (f->kind == FD_KIND_MEMFD || f->kind == FD_KIND_STATE) {
                _cleanup_free_ char *reason = NULL;

                r = check_memory(um, f, &holes, &reason);
                if (r < 0) {
                        luv_update_fail(u, um, "cannot preserve %s \"%s\" of machine %s: %s",
                                        luv_fd_kind_to_string(f->kind), f->name, m->name,
                                        reason ? reason : strerror(-r));
                        return;
                }
        }
        /* Only what takes memory, or long, needs a process of its own in the machine's control group. */
        r = luv_luo_session_set_cgroup(m->session,
                                       m->state == MACHINE_QUIESCED && holes == 0 ? NULL : m->owner.cgroup);
        if (r >= 0) {
                um->preserving = f;
                /* No other file may take its place from here on. */
                f->preserved = true;
                r = luv_luo_session_preserve(m->session, f->fd, f->token,
                                             luv_now_usec() + STAGE_DEADLINE_USEC, on_preserved, um,
                                             &um->call);
        }
        if (r < 0)
                fail_session(um, r, "cannot preserve a file");
}

static void on_session(int error, LuoSession *session, void *userdata)
{
        UpdateMachine *um = userdata;
        Machine *m = um->machine;
        int r;

        um->call = luv_luo_call_free(um->call);
        if (error < 0) {
                fail_session(um, error, "cannot make the session");
                return;
        }
        m->session = session;
        /* From here on it outlives this process. */
        r = luv_fd_store_push(um->update->config.store, m->session_name, luv_luo_session_get_fd(session));
        if (r < 0) {
                fail_session(um, r, "cannot store the session");
                return;
        }
        luv_update_preserve_next(um);
}

static void start_work(UpdateMachine *um)
{
        Update *u = um->update;
        Machine *m = um->machine;
        int r;

        if (m->session) {
                luv_update_preserve_next(um);
                return;
        }
        /* A name of its own for each try: PID 1 lets go of the last try's session in its own time. */
        m->tries++;
        free(m->session_name);
        m->session_name = luv_strf(LUVFIO_SESSION_PREFIX "%s-%" PRIu64, m->name, m->generation + m->tries);
        if (!m->session_name)
                r = -ENOMEM;
        else
                r = luv_luo_session_create(u->config.luo, m->session_name,
                                           luv_now_usec() + STAGE_DEADLINE_USEC, on_session, um, &um->call);
        if (r < 0)
                fail_session(um, r, "cannot make the session");
}

void luv_update_stage_machine(UpdateMachine *um)
{
        um->taking_part = true;
        um->sacrificed = false;
        um->fds_done = false;
        um->step = STEP_ASKED;
        luv_machine_set_state(um->machine, MACHINE_PREPARING);
        luv_update_tell(um, MACHINE_EVENT_PREPARE, NULL);
}

static void on_staged(Update *u)
{
        if (luv_update_write_journal(u) < 0) {
                luv_update_fail(u, NULL, "the update cannot be noted in %s", u->config.runtime_dir);
                return;
        }
        if (luv_update_transition(u, UPDATE_STAGED) < 0) {
                luv_update_fail(u, NULL, "wrong state");
                return;
        }
        if (u->dry_run)
                luv_update_turn_back(u);
        else if (u->jump)
                luv_update_drain(u);
        else
                luv_update_ended(u, UPDATE_END_STAGED, NULL, NULL);
}

void luv_update_go_on_from_staged(Update *u)
{
        size_t n = luv_machine_registry_size(u->config.machines);
        bool complete = true;
        int r;

        for (size_t i = 0; i < n; i++) {
                Machine *m = luv_machine_registry_at(u->config.machines, i);
                UpdateMachine *um = luv_update_machine(u, m);

                if (!um) {
                        luv_update_fail(u, NULL, "out of memory");
                        return;
                }
                if (m->state == MACHINE_RUNNING && !um->taking_part && !um->sacrificed)
                        luv_update_stage_machine(um);
                complete = complete && (!um->taking_part || um->sacrificed || um->step == STEP_DONE);
        }
        if (complete) {
                if (u->dry_run)
                        luv_update_turn_back(u);
                else
                        luv_update_drain(u);
                return;
        }
        /* Some came since, or have not answered yet. */
        r = luv_update_transition(u, UPDATE_STAGING);
        if (r >= 0)
                r = luv_update_set_barrier(u, on_staged, "prepare", luv_now_usec() + PREPARE_DEADLINE_USEC);
        if (r < 0)
                luv_update_fail(u, NULL, "staging cannot go on: %s", strerror(-r));
}

static void stage_machines(Update *u)
{
        size_t n = luv_machine_registry_size(u->config.machines);
        int r;

        r = luv_update_push_undo(u, "preserving machines", undo_machines);
        if (r >= 0)
                r = luv_update_set_barrier(u, on_staged, "prepare", luv_now_usec() + PREPARE_DEADLINE_USEC);
        if (r < 0) {
                luv_update_fail(u, NULL, "staging cannot begin: %s", strerror(-r));
                return;
        }
        for (size_t i = 0; i < n; i++) {
                Machine *m = luv_machine_registry_at(u->config.machines, i);
                UpdateMachine *um = luv_update_machine(u, m);

                if (!um) {
                        luv_update_fail(u, NULL, "out of memory");
                        return;
                }
                if (m->state == MACHINE_RUNNING &&
                    (m->attached || !luv_strv_contains(u->sacrifice, m->name)))
                        luv_update_stage_machine(um);
        }
}

static void on_host_session(int error, LuoSession *session, void *userdata);

static int on_host_retry(sd_event_source *s, uint64_t usec, void *userdata)
{
        Update *u = userdata;
        int r;

        u->host_retry = sd_event_source_disable_unref(u->host_retry);
        r = luv_luo_session_create(u->config.luo, LUVFIO_HOST_SESSION, u->host_deadline, on_host_session, u,
                                   &u->host_call);
        if (r < 0)
                luv_update_fail(u, NULL, "cannot make the session " LUVFIO_HOST_SESSION ": %s",
                                strerror(-r));
        return 0;
}

static void on_host_session(int error, LuoSession *session, void *userdata)
{
        Update *u = userdata;
        int r;

        u->host_call = luv_luo_call_free(u->host_call);
        /* The last update's is still being closed by the service manager. */
        if (error == -EEXIST && luv_usec_left(u->host_deadline) > 0) {
                r = sd_event_add_time_relative(u->config.event, &u->host_retry, CLOCK_BOOTTIME, RETRY_USEC,
                                               0, on_host_retry, u);
                if (r < 0)
                        luv_update_fail(u, NULL, "the event loop failed: %s", strerror(-r));
                return;
        }
        if (error < 0) {
                luv_update_fail(u, NULL, "cannot make the session " LUVFIO_HOST_SESSION ": %s",
                                error == -EEXIST  ? "an earlier one is still held by somebody"
                                : error == -EBUSY ? "/dev/liveupdate is held open by another process"
                                                  : strerror(-error));
                return;
        }
        u->host_session = session;
        r = luv_fd_store_push(u->config.store, LUVFIO_HOST_SESSION, luv_luo_session_get_fd(session));
        if (r < 0) {
                luv_update_fail(u, NULL, "cannot store the session " LUVFIO_HOST_SESSION ": %s",
                                r == -ENOSPC ? "the service manager's fd store is full" : strerror(-r));
                return;
        }
        stage_machines(u);
}

static int load_image(Update *u)
{
        int r;

        if (u->config.simulated)
                return 0;
        luv_update_say(u, NULL, "loading kernel %s", u->to_kernel);
        r = luv_kexec_load(u->kernel_fd, u->initrd_fd, strempty(u->cmdline));
        if (r < 0)
                luv_update_fail(u, NULL, "the kernel %s cannot be loaded: %s", u->to_kernel,
                                r == -EADDRNOTAVAIL ? "it does not fit into the memory set aside for live "
                                                      "updates (kho_scratch=)"
                                : r == -ENOEXEC     ? "the running kernel does not take it for a kernel"
                                                    : strerror(-r));
        return r;
}

void luv_update_stage(Update *u)
{
        int r;

        r = luv_update_transition(u, UPDATE_STAGING);
        if (r >= 0)
                r = luv_update_write_journal(u);
        if (r >= 0)
                r = luv_update_push_undo(u, "letting go of sessions", luv_update_undo_settle);
        if (r >= 0)
                r = luv_update_push_undo(u, "waiting for machines", luv_update_undo_wait_resumed);
        if (r >= 0)
                r = luv_update_push_undo(u, "loading the kernel", undo_image);
        if (r < 0) {
                luv_update_fail(u, NULL, "staging cannot begin: %s", strerror(-r));
                return;
        }
        if (load_image(u) < 0)
                return;
        u->kernel_fd = safe_close(u->kernel_fd);
        u->initrd_fd = safe_close(u->initrd_fd);

        r = luv_update_push_undo(u, "making the host's session", undo_host_session);
        if (r >= 0) {
                u->host_deadline = luv_now_usec() + PREPARE_DEADLINE_USEC;
                r = luv_luo_session_create(u->config.luo, LUVFIO_HOST_SESSION, u->host_deadline,
                                           on_host_session, u, &u->host_call);
        }
        if (r < 0)
                luv_update_fail(u, NULL, "cannot make the session " LUVFIO_HOST_SESSION ": %s",
                                strerror(-r));
}
