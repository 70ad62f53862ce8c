/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "agents/qemu-check.h"
#include "agents/qemu-private.h"
#include "util/log.h"
#include "util/string-util.h"
#include "util/time-util.h"

#define CHECKS_MAX 4u

char *luv_qemu_path(const QemuMachine *m, const char *name)
{
        return luv_strf("%s/%s", m->config.runtime_dir, name);
}

void luv_qemu_release(QemuMachine *m)
{
        m->qmp_source = sd_event_source_disable_unref(m->qmp_source);
        m->process_source = sd_event_source_disable_unref(m->process_source);
        m->qmp = luv_qmp_free(m->qmp);
        luv_qemu_process_done(&m->process);
        m->state = QEMU_NONE;
}

void luv_qemu_drop_held(QemuMachine *m)
{
        for (size_t i = 0; i < m->n_held; i++) {
                free(m->held[i].name);
                safe_close(m->held[i].fd);
        }
        free(m->held);
        m->held = NULL;
        m->n_held = 0;
}

void luv_qemu_drop_channels(QemuMachine *m)
{
        _cleanup_free_ char *path = luv_qemu_path(m, "main.sock");

        if (path && m->main_fd >= 0)
                (void) unlink(path);
        m->main_fd = safe_close(m->main_fd);
        m->cpr_fd = safe_close(m->cpr_fd);
        luv_cpr_state_done(&m->cpr);
}

void luv_qemu_drop_capture(QemuMachine *m)
{
        m->document = luv_qemu_document_free(m->document);
        m->document_fd = safe_close(m->document_fd);
        m->stream_fd = safe_close(m->stream_fd);
        m->begun_fd = safe_close(m->begun_fd);
        m->channel_fd = safe_close(m->channel_fd);
        for (size_t i = 0; i < ELEMENTSOF(m->pipe_fds); i++)
                m->pipe_fds[i] = safe_close(m->pipe_fds[i]);
}

QemuMachine *luv_qemu_machine_free(QemuMachine *m)
{
        if (!m)
                return NULL;
        luv_qemu_release(m);
        luv_qemu_drop_channels(m);
        luv_qemu_drop_capture(m);
        luv_qemu_drop_held(m);
        sd_event_source_disable_unref(m->stop_source);
        luvfio_unref(m->l);
        free(m->monitor);
        free(m);
        return NULL;
}

static uint64_t deadline_of(const struct luvfio_event *event, uint64_t usec)
{
        return luv_now_usec() + MIN(event->remaining_usec, usec);
}

/* Files. */

int luv_qemu_hold(QemuMachine *m, const char *name, FdKind kind, int *fd)
{
        _cleanup_free_ char *copy = strdup(name);
        QemuHeld *held = reallocarray(m->held, m->n_held + 1, sizeof(QemuHeld));
        uint64_t number;

        if (held)
                m->held = held;
        if (!held || !copy)
                return -ENOMEM;
        m->held[m->n_held++] = (QemuHeld) { .name = TAKE_PTR(copy), .kind = kind, .fd = TAKE_FD(*fd) };
        /* A later one gets another name. */
        if (luv_parse_u64(name + strcspn(name, "0123456789"), &number) >= 0)
                m->last_file = MAX(m->last_file, number);
        return 0;
}

const QemuHeld *luv_qemu_find_same(const QemuMachine *m, int fd)
{
        for (size_t i = 0; i < m->n_held; i++)
                if (luv_fd_same(m->held[i].fd, fd) > 0)
                        return &m->held[i];
        return NULL;
}

static enum luvfio_kind kind_for_luvfiod(FdKind k)
{
        return k == FD_KIND_MEMFD     ? LUVFIO_KIND_MEMFD
               : k == FD_KIND_IOMMUFD ? LUVFIO_KIND_IOMMUFD
                                      : LUVFIO_KIND_VFIO;
}

/* Hands one over that is new. Takes FD if it is. */
int luv_qemu_hand_over(QemuMachine *m, FdKind kind, int *fd)
{
        _cleanup_free_ char *name = NULL;
        int r;

        if (luv_qemu_find_same(m, *fd))
                return 0;
        name = luv_strf("%s%llu", luv_fd_kind_to_string(kind), (unsigned long long) ++m->last_file);
        if (!name)
                return -ENOMEM;
        r = luvfio_preserve(m->l, name, kind_for_luvfiod(kind), *fd, NULL);
        return r < 0 ? r : luv_qemu_hold(m, name, kind, fd);
}

/* Memory first, then iommufds, then devices: what becomes of one depends on those before it. */
static int hand_over_all(QemuMachine *m, QemuFiles *files)
{
        static const FdKind order[] = { FD_KIND_MEMFD, FD_KIND_IOMMUFD, FD_KIND_VFIO };
        int r = 0;

        for (size_t k = 0; k < ELEMENTSOF(order); k++)
                for (size_t i = 0; i < files->n && r >= 0; i++)
                        if (files->items[i].identity.kind == order[k])
                                r = luv_qemu_hand_over(m, order[k], &files->items[i].fd);
        return r;
}

/* What speaks against an update. */

static int check_outcomes(QemuMachine *m, Blockers *b)
{
        int r = 0;

        for (size_t i = 0; i < m->n_held && r >= 0; i++) {
                const struct luvfio_fd *f = luvfio_find_fd(m->l, m->held[i].name);

                if (f && f->outcome != LUVFIO_OUTCOME_PRESERVED)
                        r = luv_blockers_add(
                                        b,
                                        "See what else is found of it; or boot a kernel that preserves it.",
                                        "%s%s would not be preserved as it is now (but %s), and QEMU cannot "
                                        "do without",
                                        f->device ? "device " : "its ",
                                        f->device ? f->device : luvfio_kind_to_string(f->kind),
                                        luvfio_outcome_to_string(f->outcome));
        }
        return r;
}

/* What luvfiod knows of a machine by names of an earlier run is of no use to this one. */
static int register_anew(QemuMachine *m)
{
        int r;

        if (luvfio_get_state(m->l) != LUVFIO_STATE_RUNNING || !luvfio_list_fds(m->l, 0) || m->n_held > 0)
                return 0;
        r = luvfio_withdraw(m->l);
        return r < 0 ? r : luvfio_register(m->l);
}

/* A luvfiod that was started anew has forgotten what was handed over. */
static int hand_over_again(QemuMachine *m)
{
        int r = 0;

        for (size_t i = 0; i < m->n_held && r >= 0; i++)
                if (!luvfio_find_fd(m->l, m->held[i].name))
                        r = luvfio_preserve(m->l, m->held[i].name, kind_for_luvfiod(m->held[i].kind),
                                            m->held[i].fd, NULL);
        return r;
}

/* 1: QEMU did not answer. */
static int check_qemu(QemuMachine *m, const QemuFiles *files, Blockers *b)
{
        const QemuBackend *backend = m->config.backend;
        int r;

        if (m->unanswered)
                return luv_blockers_add(b, "See whether QEMU hangs.", "QEMU does not answer");
        r = luv_qemu_check(m->qmp, backend->keeps_argv ? m->process.argv : NULL, files,
                           luv_now_usec() + CALL_USEC, b);
        return r != 0 || !backend->check ? r : MIN(backend->check(m, luv_now_usec() + CALL_USEC, b), 0);
}

static int check_once(QemuMachine *m)
{
        _cleanup_(luv_qemu_files_done) QemuFiles files = {};
        _cleanup_(luv_blockers_done) Blockers b = {};
        int r;

        r = register_anew(m);
        if (r < 0)
                return luv_log_error(r, "%s", luvfio_get_error(m->l));
        r = luv_qemu_process_files(&m->process, &files);
        if (r < 0)
                return luv_log_error(r, "Cannot look at the files of QEMU (pid %i)", (int) m->process.pid);
        r = hand_over_again(m);
        if (r >= 0)
                r = hand_over_all(m, &files);
        if (r < 0) {
                luv_log_warning("%s", luvfio_get_error(m->l));
                r = luv_blockers_add(&b, NULL, "%s", luvfio_get_error(m->l));
        }
        if (r >= 0)
                r = check_qemu(m, &files, &b);
        if (r > 0)
                m->unanswered = true;
        if (r >= 0)
                r = check_outcomes(m, &b);
        if (r < 0)
                return luv_log_error(r, "Cannot check QEMU (pid %i)", (int) m->process.pid);
        r = luvfio_set_blockers(m->l, b.items, b.n);
        if (r < 0)
                luv_log_warning("%s", luvfio_get_error(m->l));
        for (size_t i = 0; i < b.n; i++)
                luv_log(LOG_NOTICE, "It could not take part in a live update: %s", b.items[i].message);
        m->blocked = b.n > 0;
        return m->blocked;
}

/* Whether QEMU has told of something after which it has to be looked at again. */
static bool has_changed(QemuMachine *m)
{
        bool changed = false;

        for (;;) {
                _cleanup_free_ char *name = NULL;

                if (luv_qmp_take_event(m->qmp, &name, NULL) <= 0)
                        return changed;
                changed = changed || streq(name, "DEVICE_DELETED") ||
                          (m->blocked && (streq(name, "RESUME") || streq(name, "STOP")));
        }
}

/* Looks at all of it again, and tells luvfiod. 1: there are blockers. */
static int check(QemuMachine *m)
{
        int r = 0;

        for (unsigned i = 0; i < CHECKS_MAX; i++) {
                r = check_once(m);
                /* What it owes comes as an event of its own. */
                if (r < 0 || m->unanswered)
                        break;
                /* It may have told of something in the middle. */
                (void) luv_qmp_process(m->qmp);
                if (!has_changed(m))
                        break;
        }
        return r;
}

/* This update is over, for that reason; `abort` follows. */
static void give_up(QemuMachine *m, const char *reason)
{
        luv_log(LOG_WARNING, "Not in this update: %s", reason);
        if (luvfio_set_blockers(m->l, &(struct luvfio_blocker) { .message = reason }, 1) < 0)
                luv_log_warning("%s", luvfio_get_error(m->l));
}

/* The machine is lost to this process; the next one tries again with what is kept. */
static void fail(QemuMachine *m, int error, const char *reason)
{
        luv_log_error(error, "Machine %s does not run: %s", m->config.name, reason ? reason : "");
        (void) sd_event_exit(m->config.event, EXIT_FAILURE);
}

static bool let_go(QemuMachine *m)
{
        _cleanup_free_ char *reason = NULL;
        int r;

        r = luv_qemu_let_go(m, &reason);
        /* Its end is to come as an event yet. */
        if (r < 0 && !luv_qemu_process_is_ending(&m->process))
                fail(m, r, reason);
        return r >= 0;
}

/* What luvfiod asks for. */

static void on_prepare(struct luvfio *l, const struct luvfio_event *event, void *userdata)
{
        _cleanup_free_ char *reason = NULL;
        QemuMachine *m = userdata;
        int r;

        if (!let_go(m))
                return;
        /* What is found there ends the update. */
        if (m->state != QEMU_RUNNING)
                return;
        r = check(m);
        if (r < 0)
                give_up(m, "QEMU cannot be looked at");
        if (r != 0)
                return;
        r = luv_qemu_prepare(m, deadline_of(event, START_USEC), &reason);
        if (r < 0) {
                give_up(m, reason ? reason : strerror(-r));
                return;
        }
        if (luvfio_prepared(l) < 0)
                luv_log_warning("%s", luvfio_get_error(l));
}

static void on_quiesce(struct luvfio *l, const struct luvfio_event *event, void *userdata)
{
        uint64_t deadline = deadline_of(event, START_USEC), stopped;
        _cleanup_free_ char *reason = NULL;
        QemuMachine *m = userdata;
        int r;

        if (m->state != QEMU_HELD)
                return;
        r = luv_qemu_begin_document(m, deadline, &reason);
        stopped = luvfio_now();
        if (r >= 0)
                r = luv_qemu_quiesce(m, deadline, &reason);
        if (r < 0) {
                give_up(m, reason ? reason : strerror(-r));
                return;
        }
        if (luvfio_quiesced(l, stopped) < 0)
                luv_log_warning("%s", luvfio_get_error(l));
}

static void on_commit(struct luvfio *l, const struct luvfio_event *event, void *userdata)
{
        if (luvfio_committed(l) < 0)
                luv_log_warning("%s", luvfio_get_error(l));
}

/* Going on. */

int luv_qemu_go_on(QemuMachine *m, uint64_t deadline, char **ret_reason)
{
        if (m->process.pid > 0)
                (void) luv_qemu_process_kill(&m->process, deadline);
        luv_qemu_release(m);
        luv_qemu_drop_channels(m);
        return m->config.backend->go_on(m, deadline, ret_reason);
}

static int resumed(QemuMachine *m, uint64_t running_usec)
{
        int r = luvfio_resumed(m->l, running_usec);

        if (r < 0)
                luv_log_warning("%s", luvfio_get_error(m->l));
        luv_qemu_unstore(m);
        luv_qemu_drop_capture(m);
        return r;
}

static void stop_now(QemuMachine *m);

static void on_abort(struct luvfio *l, const struct luvfio_event *event, void *userdata)
{
        _cleanup_free_ char *reason = NULL;
        QemuMachine *m = userdata;
        int r;

        if (event->reason)
                luv_log(LOG_NOTICE, "The update is given up: %s", event->reason);
        if (!let_go(m))
                return;
        if (m->state == QEMU_CAPTURED) {
                r = luv_qemu_go_on(m, luv_now_usec() + REPLAY_USEC, &reason);
                if (r < 0) {
                        fail(m, r, reason);
                        return;
                }
        }
        if (m->state != QEMU_RUNNING)
                return;
        (void) resumed(m, luvfio_now());
        (void) check(m);
        if (m->stop)
                stop_now(m);
}

static int retrieve(QemuMachine *m, const char *name)
{
        int fd = luvfio_retrieve(m->l, name, NULL);

        if (fd < 0)
                luv_log_warning("%s", luvfio_get_error(m->l));
        return fd;
}

/* All that luvfiod has. Memory comes first in its list. */
static int retrieve_all(QemuMachine *m)
{
        _cleanup_strv_ char **names = NULL;
        const struct luvfio_fd *f;
        int r = 0;

        for (size_t i = 0; (f = luvfio_list_fds(m->l, i)) && r >= 0; i++)
                if (f->kind != LUVFIO_KIND_STATE)
                        r = luv_strv_extend(&names, f->name);
        for (char **name = names; name && *name && r >= 0; name++) {
                _cleanup_close_ int fd = -EBADF;
                FdIdentity identity;

                fd = retrieve(m, *name);
                r = fd < 0 ? fd : luv_fd_identify(fd, false, &identity, NULL);
                if (r >= 0)
                        r = luv_qemu_hold(m, *name, identity.kind, &fd);
        }
        return r;
}

static int take_in(QemuMachine *m, char **ret_reason)
{
        int r;

        luv_qemu_drop_capture(m);
        luv_qemu_drop_held(m);
        r = retrieve_all(m);
        if (r >= 0)
                r = m->stream_fd = retrieve(m, QEMU_STREAM);
        if (r >= 0)
                r = m->document_fd = retrieve(m, QEMU_DOCUMENT);
        if (r < 0)
                return luv_reason(ret_reason, r, "%s", luvfio_get_error(m->l));
        r = luv_qemu_document_read(m->document_fd, &m->document, ret_reason);
        return r < 0 ? r : luv_qemu_go_on(m, luv_now_usec() + REPLAY_USEC, ret_reason);
}

static void on_resume(struct luvfio *l, const struct luvfio_event *event, void *userdata)
{
        _cleanup_free_ char *reason = NULL;
        QemuMachine *m = userdata;
        int r;

        if (m->state != QEMU_RUNNING) {
                r = take_in(m, &reason);
                if (r < 0) {
                        fail(m, r, reason);
                        return;
                }
        } else if (m->n_held == 0 && retrieve_all(m) < 0)
                /* An earlier run of this program has them by these names. They are QEMU's in any case. */
                luv_qemu_drop_held(m);
        r = resumed(m, luvfio_now());
        /* Too late, but the guest runs: the next run of this program takes it up, and comes late. */
        if (r < 0 && luvfio_is_attached(l))
                fail(m, r, "luvfiod does not wait for it any more");
}

static void on_finished(struct luvfio *l, const struct luvfio_event *event, void *userdata)
{
        QemuMachine *m = userdata;

        if (m->state == QEMU_RUNNING)
                (void) check(m);
        if (m->stop)
                stop_now(m);
}

static void on_attached(struct luvfio *l, const struct luvfio_event *event, void *userdata)
{
        QemuMachine *m = userdata;

        if (event->state == LUVFIO_STATE_RUNNING && m->state == QEMU_RUNNING)
                (void) check(m);
}

static void on_lost(struct luvfio *l, const char *reason, void *userdata)
{
        luv_log_warning("luvfiod: %s", reason);
}

/* QEMU's end. */

static int on_process_end(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
        QemuMachine *m = userdata;
        siginfo_t info = {};
        int code = EXIT_SUCCESS;

        m->process_source = sd_event_source_disable_unref(m->process_source);
        /* It is of no use any more anyhow. */
        if (m->state == QEMU_CAPTURED)
                return 0;
        if (waitid(P_PIDFD, (id_t) m->process.pidfd, &info, WEXITED) >= 0 && info.si_pid > 0) {
                code = info.si_code == CLD_EXITED && info.si_status == 0 ? EXIT_SUCCESS
                                                                         : QEMU_MACHINE_FAILED;
                luv_log(code == EXIT_SUCCESS ? LOG_INFO : LOG_WARNING, "QEMU (pid %i) has ended, %s %i",
                        (int) info.si_pid, info.si_code == CLD_EXITED ? "exit code" : "signal",
                        info.si_status);
        } else
                luv_log_info("QEMU (pid %i) has ended", (int) m->process.pid);
        luv_qemu_release(m);
        luv_qemu_drop_channels(m);
        luv_qemu_drop_held(m);
        if (luvfio_withdraw(m->l) < 0)
                luv_log_info("%s", luvfio_get_error(m->l));
        return sd_event_exit(m->config.event, code);
}

static int watch_monitor(QemuMachine *m);

static int on_monitor(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
        _cleanup_free_ char *reason = NULL;
        QemuMachine *m = userdata;
        bool changed = m->unanswered;
        int r;

        r = luv_qmp_process(m->qmp);
        if (r < 0) {
                m->qmp_source = sd_event_source_disable_unref(m->qmp_source);
                /* The end of its process tells the rest; or its monitor is another's, which may come again.
                 */
                if (!m->config.backend->reopen)
                        return 0;
                r = m->state == QEMU_RUNNING ? m->config.backend->reopen(m, &reason) : r;
                if (r >= 0)
                        r = watch_monitor(m);
                if (r < 0) {
                        fail(m, r, reason ? reason : "its monitor cannot be reached any more");
                        return 0;
                }
                changed = true;
        }
        m->unanswered = false;
        changed = has_changed(m) || changed;
        if (changed && m->state == QEMU_RUNNING)
                (void) check(m);
        return 0;
}

static int watch_monitor(QemuMachine *m)
{
        return sd_event_add_io(m->config.event, &m->qmp_source, luv_qmp_get_fd(m->qmp), EPOLLIN, on_monitor,
                               m);
}

static int on_stop_deadline(sd_event_source *s, uint64_t usec, void *userdata)
{
        QemuMachine *m = userdata;
        bool again = m->quit;

        /* In an update by now: after it. */
        if (m->state != QEMU_RUNNING) {
                m->stop_source = sd_event_source_disable_unref(m->stop_source);
                return 0;
        }
        if (!again)
                luv_log_warning("The guest has not powered itself off in time");
        m->quit = true;
        if (again || luv_qmp_call(m->qmp, "quit", NULL, luv_now_usec() + CALL_USEC, NULL, NULL) < 0 ||
            sd_event_source_set_time_relative(s, CALL_USEC) < 0 ||
            sd_event_source_set_enabled(s, SD_EVENT_ONESHOT) < 0)
                (void) luv_qemu_process_signal(&m->process, SIGKILL);
        return 0;
}

static void stop_now(QemuMachine *m)
{
        int r;

        if (!m->config.backend->stops_machine) {
                if (luvfio_withdraw(m->l) < 0)
                        luv_log_info("%s", luvfio_get_error(m->l));
                (void) sd_event_exit(m->config.event, EXIT_SUCCESS);
                return;
        }
        if (m->stop_source)
                return;
        r = sd_event_add_time_relative(m->config.event, &m->stop_source, CLOCK_BOOTTIME, m->config.stop_usec,
                                       0, on_stop_deadline, m);
        if (r < 0 ||
            luv_qmp_call(m->qmp, "system_powerdown", NULL, luv_now_usec() + CALL_USEC, NULL, NULL) < 0)
                (void) luv_qemu_process_signal(&m->process, SIGTERM);
}

void luv_qemu_machine_stop(QemuMachine *m)
{
        m->stop = true;
        if (m->state == QEMU_RUNNING)
                stop_now(m);
        else if (m->state == QEMU_NONE)
                (void) sd_event_exit(m->config.event, EXIT_SUCCESS);
}

/* A QEMU that runs: its process and its monitor are watched. */
int luv_qemu_adopt(QemuMachine *m)
{
        int r;

        m->blocked = m->unanswered = false;
        r = sd_event_add_io(m->config.event, &m->process_source, m->process.pidfd, EPOLLIN, on_process_end,
                            m);
        if (r >= 0)
                r = watch_monitor(m);
        if (r < 0)
                return r;
        m->state = QEMU_RUNNING;
        return 0;
}

/* Beginnings. */

static int connect_luvfiod(QemuMachine *m)
{
        static const struct luvfio_handlers handlers = {
                .size = sizeof(handlers),
                .attached = on_attached,
                .lost = on_lost,
                .prepare = on_prepare,
                .quiesce = on_quiesce,
                .commit = on_commit,
                .abort = on_abort,
                .resume = on_resume,
                .finished = on_finished,
        };
        int r;

        r = luvfio_new(&m->l, m->config.name);
        if (r < 0)
                return luv_log_error(r, "\"%s\" is no name for a machine", m->config.name);
        r = luvfio_set_handlers(m->l, &handlers, m);
        if (r >= 0)
                r = luvfio_set_vmm(m->l, m->config.backend->vmm);
        if (r >= 0 && m->config.secret_file) {
                r = luvfio_load_secret(m->l, m->config.secret_file);
                if (r == -ENOENT)
                        r = 0;
        }
        if (r >= 0)
                r = luvfio_register(m->l);
        if (r >= 0 && m->config.secret_file)
                r = luvfio_save_secret(m->l, m->config.secret_file);
        return r < 0 ? luv_log_error(r, "%s", luvfio_get_error(m->l)) : 0;
}

int luv_qemu_machine_new(const QemuMachineConfig *config, QemuMachine **ret)
{
        _cleanup_(luv_qemu_machine_freep) QemuMachine *m = calloc(1, sizeof(QemuMachine));
        _cleanup_free_ char *reason = NULL;
        int r;

        if (!m)
                return -ENOMEM;
        m->config = *config;
        m->process = QEMU_PROCESS_NULL;
        m->main_fd = m->cpr_fd = m->document_fd = m->stream_fd = -EBADF;
        m->begun_fd = m->channel_fd = m->pipe_fds[0] = m->pipe_fds[1] = -EBADF;
        if (mkdir(config->runtime_dir, 0700) < 0 && errno != EEXIST)
                return luv_log_error(negative_errno(), "The folder %s cannot be made", config->runtime_dir);
        r = connect_luvfiod(m);
        if (r < 0)
                return r;
        r = luv_qemu_begin(m, &reason);
        if (r < 0) {
                /* There is nothing of it but its name. */
                if (m->process.pid == 0 && luvfio_get_state(m->l) == LUVFIO_STATE_RUNNING)
                        (void) luvfio_withdraw(m->l);
                return luv_log_error(r, "Machine %s cannot begin: %s", config->name, strempty(reason));
        }
        if (m->state == QEMU_RUNNING) {
                luv_qemu_unstore(m);
                luv_qemu_drop_capture(m);
                if (luvfio_get_state(m->l) == LUVFIO_STATE_RUNNING)
                        (void) check(m);
        }
        /* Events are waited for only now: what they are about is there. */
        r = luvfio_attach_event(m->l, config->event, 0);
        if (r < 0)
                return luv_log_error(r, "The event loop failed");
        *ret = TAKE_PTR(m);
        return 0;
}
