/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>

#include "agents/qemu-private.h"
#include "machine/peer.h"
#include "util/io.h"
#include "util/log.h"
#include "util/string-util.h"
#include "util/time-util.h"

#define STATUS_USEC (10 * USEC_PER_MSEC)
#define NOTE_SIZE_MAX ((size_t) 8 * 1024 * 1024)

/* So that the next run of this program finds QEMU: its pid, when it was started, what it is, where its
 * monitor is, its command line. */
typedef enum Note {
        NOTE_NONE,
        NOTE_RUNS = 'r',     /* as its user wants it */
        NOTE_COMES = 'i',    /* a machine comes into it that it does not have whole */
        NOTE_WHOLE = 'c',    /* it has, and is to be let run */
        NOTE_CAPTURED = 'h', /* it has handed the machine over, and stands */
} Note;

static int write_note(const QemuMachine *m, const QemuProcess *process, Note note, const char *monitor)
{
        _cleanup_free_ char *path = luv_qemu_path(m, "qemu"), *text = NULL;
        size_t size = 0;
        uint64_t start;
        FILE *f;
        int r;

        r = luv_process_start_time(process->pid, &start);
        if (r < 0)
                return r;
        f = open_memstream(&text, &size);
        if (!path || !f) {
                if (f)
                        (void) fclose(f);
                return -ENOMEM;
        }
        (void) fprintf(f, "%i %llu %c %s\n", (int) process->pid, (unsigned long long) start, (char) note,
                       monitor);
        /* As it was started, which may have been by another program that became it. */
        for (char **word = process->argv; word && *word; word++)
                (void) fwrite(*word, 1, strlen(*word) + 1, f);
        if (fclose(f) != 0)
                return -ENOMEM;
        return luv_write_file_atomic(AT_FDCWD, path, text, size, 0600);
}

static int note_and_adopt(QemuMachine *m, const char *monitor)
{
        int r;

        r = luv_free_and_strdup(&m->monitor, monitor);
        if (r < 0)
                return r;
        r = write_note(m, &m->process, NOTE_RUNS, monitor);
        if (r < 0)
                luv_log_error(r, "QEMU (pid %i) cannot be noted in %s", (int) m->process.pid,
                              m->config.runtime_dir);
        return luv_qemu_adopt(m);
}

bool luv_qemu_comes_in(const QemuMachine *m)
{
        int s = luvfio_get_state(m->l);

        return s == LUVFIO_STATE_RESTORING || s == LUVFIO_STATE_RESUMING || s == LUVFIO_STATE_STRANDED;
}

static int note_new(const QemuProcess *process, bool whole, void *userdata)
{
        const QemuMachine *m = userdata;
        _cleanup_free_ char *path = luv_qemu_path(m, "qmp.sock");

        return path ? write_note(m, process, NOTE_RUNS, path) : -ENOMEM;
}

static int start_new(QemuMachine *m, char **ret_reason)
{
        _cleanup_free_ char *path = luv_qemu_path(m, "qmp.sock"), *cwd = getcwd(NULL, 0);
        int monitor_fd, r;

        if (!path || !cwd)
                return -ENOMEM;
        if (!m->config.argv || !m->config.argv[0])
                return luv_reason(ret_reason, -ENOENT, "there is no QEMU, and no command line for one");
        monitor_fd = luv_qemu_listen(path);
        if (monitor_fd < 0)
                return luv_reason(ret_reason, monitor_fd, "the socket %s cannot be made: %s", path,
                                  strerror(-monitor_fd));
        r = luv_qemu_start(&(QemuStart) { .argv = m->config.argv,
                                          .cwd = cwd,
                                          .monitor_fd = monitor_fd,
                                          .main_fd = -EBADF,
                                          .cpr_fd = -EBADF,
                                          .note = note_new,
                                          .userdata = m },
                           &m->process, ret_reason);
        safe_close(monitor_fd);
        if (r < 0)
                return -ECHILD;
        r = luv_qemu_monitor(path, luv_now_usec() + START_USEC, &m->qmp, ret_reason);
        if (r >= 0)
                return note_and_adopt(m, path);
        (void) luv_qemu_process_kill(&m->process, luv_now_usec() + CALL_USEC);
        return -ECHILD;
}

int luv_qemu_status(Qmp *q, char **ret, char **ret_reason)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL;
        sd_json_variant *status;
        int r;

        r = luv_qmp_call(q, "query-status", NULL, luv_now_usec() + CALL_USEC, &v, ret_reason);
        if (r < 0)
                return r;
        status = sd_json_variant_by_key(v, "status");
        *ret = strdup(status && sd_json_variant_is_string(status) ? sd_json_variant_string(status) : "");
        return *ret ? 0 : -ENOMEM;
}

/*
 * 1: one that an earlier run of this program has noted lives; *RET is where its monitor is. 0: it does not;
 * *RET_NOTE is all the same what it was, if one was noted.
 */
static int find_noted(QemuMachine *m, Note *ret_note, char **ret)
{
        _cleanup_free_ char *path = luv_qemu_path(m, "qemu"), *text = NULL;
        _cleanup_strv_ char **argv = NULL;
        unsigned long long start;
        int pid, at = 0, r;
        uint64_t now;
        size_t size;
        char note, *end;

        if (!path)
                return -ENOMEM;
        r = luv_read_file(AT_FDCWD, path, NOTE_SIZE_MAX, &text, &size);
        if (r < 0)
                return r == -ENOMEM ? r : 0;
        end = strchr(text, '\n');
        if (!end || sscanf(text, "%i %llu %c %n", &pid, &start, &note, &at) != 3 || at == 0 || pid <= 0 ||
            end < text + at)
                return 0;
        *end = 0;
        *ret_note = (Note) note;
        for (const char *word = end + 1; word < text + size && r >= 0; word += strlen(word) + 1)
                r = luv_strv_extend(&argv, word);
        if (r < 0)
                return r;
        r = luv_qemu_process_open(pid, &m->process);
        if (r < 0)
                return r == -ESRCH ? 0 : r;
        /* Or another process has its number by now. */
        if (luv_process_start_time(pid, &now) < 0 || now != start) {
                luv_qemu_process_done(&m->process);
                return 0;
        }
        if (argv) {
                luv_strv_free(m->process.argv);
                m->process.argv = TAKE_PTR(argv);
        }
        *ret = strdup(text + at);
        return *ret ? 1 : -ENOMEM;
}

/* The one that its user has started by hand. */
static int find_named(QemuMachine *m, char **ret, char **ret_reason)
{
        _cleanup_close_ int fd = luv_qemu_connect(m->config.monitor);
        struct ucred peer = {};
        socklen_t n = sizeof(peer);
        int r;

        if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &n) < 0)
                return luv_reason(ret_reason, fd < 0 ? fd : negative_errno(), "no QEMU listens at %s: %s",
                                  m->config.monitor, strerror(fd < 0 ? -fd : errno));
        r = luv_qemu_process_open(peer.pid, &m->process);
        if (r >= 0)
                *ret = strdup(m->config.monitor);
        return r < 0 ? r : *ret ? 1 : -ENOMEM;
}

int luv_qemu_settled_status(QemuMachine *m, uint64_t deadline, char **ret, char **ret_reason)
{
        for (;;) {
                _cleanup_free_ char *status = NULL;
                int r;

                r = luv_qemu_status(m->qmp, &status, ret_reason);
                if (r < 0)
                        return r;
                if (!streq(status, "finish-migrate") || luv_usec_left(deadline) == 0) {
                        *ret = TAKE_PTR(status);
                        return 0;
                }
                r = luv_qmp_wait_event(m->qmp, "RESUME", MIN(deadline, luv_now_usec() + STATUS_USEC), NULL);
                if (r < 0 && r != -ETIMEDOUT)
                        return luv_reason(ret_reason, r, "QEMU has ended");
        }
}

/* The host may yet jump with what was captured. */
static bool waits_for_word(const QemuMachine *m)
{
        int s = luvfio_get_state(m->l);

        return s == LUVFIO_STATE_QUIESCING || s == LUVFIO_STATE_QUIESCED || s == LUVFIO_STATE_COMMITTED;
}

/*
 * One that had handed itself over to a luvfio-qemu that was killed before it had stored anything of it, and
 * so before it had told luvfiod. It may go on if it has no VFIO devices, whose interrupts it has let go. 1:
 * it does.
 */
static int continue_it(QemuMachine *m, uint64_t deadline, char **ret_reason)
{
        _cleanup_(luv_qemu_files_done) QemuFiles files = {};
        int r;

        r = luv_qemu_process_files(&m->process, &files);
        if (r < 0)
                return luv_reason(ret_reason, r, "cannot look at the files of QEMU (pid %i): %s",
                                  (int) m->process.pid, strerror(-r));
        for (size_t i = 0; i < files.n; i++)
                if (files.items[i].identity.kind == FD_KIND_VFIO)
                        return 0;
        if (files.legacy)
                return 0;
        if (waits_for_word(m))
                return luv_reason(ret_reason, -EBUSY, "an update that it takes part in is not over");
        r = luv_qmp_call(m->qmp, "cont", NULL, deadline, NULL, ret_reason);
        return r < 0 ? r : 1;
}

static int end_it(QemuMachine *m)
{
        int r = luv_qemu_process_kill(&m->process, luv_now_usec() + CALL_USEC);

        luv_qemu_release(m);
        return r;
}

static bool has_run(Note note)
{
        return note == NOTE_RUNS || note == NOTE_WHOLE;
}

/* What was captured does not go with its memory any more. */
static int is_lost(QemuMachine *m, char **ret_reason)
{
        if (m->document)
                luv_qemu_unstore(m);
        return luv_reason(ret_reason, -ECHILD,
                          "its guest has run since it was captured, and that QEMU has ended: it is lost");
}

/*
 * A QEMU that is there already. 1: it runs; 0: there is none, or none that could run: one that has been
 * captured, or one that a machine was coming into.
 */
static int take_up(QemuMachine *m, char **ret_reason)
{
        _cleanup_free_ char *path = NULL, *status = NULL;
        uint64_t deadline = luv_now_usec() + CALL_USEC;
        bool captured = m->document || luv_qemu_comes_in(m), stopped;
        Note note = NOTE_NONE;
        int r;

        r = find_noted(m, &note, &path);
        if (r == 0 && captured && has_run(note))
                return is_lost(m, ret_reason);
        if (r == 0 && m->config.monitor && !captured)
                r = find_named(m, &path, ret_reason);
        if (r <= 0)
                return r;
        stopped = luv_qemu_process_is_stopped(&m->process);
        if (note == NOTE_COMES || (note == NOTE_CAPTURED && captured) || (m->document && stopped))
                return end_it(m);
        /* Nobody else has its guest, so that it may as well run. */
        if (stopped)
                (void) luv_qemu_process_signal(&m->process, SIGCONT);
        r = luv_qemu_monitor(path, deadline, &m->qmp, ret_reason);
        if (r >= 0 && m->channel_fd >= 0)
                r = luv_qemu_take_stream(m, deadline, ret_reason);
        if (r >= 0)
                r = luv_qemu_settled_status(m, deadline, &status, ret_reason);
        if (r < 0 && luv_qemu_process_is_ending(&m->process)) {
                luv_qemu_release(m);
                return captured && has_run(note) ? is_lost(m, ret_reason) : 0;
        }
        if (r < 0)
                return r;
        if (streq(status, "postmigrate") && m->channel_fd >= 0) {
                r = luv_free_and_strdup(&m->monitor, path);
                if (r >= 0)
                        r = luv_qemu_end_capture(m, deadline, ret_reason);
                return r < 0 ? r : end_it(m);
        }
        if (streq(status, "postmigrate") && !captured) {
                r = continue_it(m, deadline, ret_reason);
                if (r < 0)
                        return r;
                if (r == 0) {
                        luv_log_error(-ENODATA,
                                      "QEMU (pid %i) has handed the machine over, and nobody has it",
                                      (int) m->process.pid);
                        return end_it(m);
                }
        } else if (streq(status, "inmigrate") || streq(status, "postmigrate") ||
                   streq(status, "finish-migrate"))
                return end_it(m);
        if (note == NOTE_WHOLE && streq(status, "paused")) {
                r = luv_qmp_call(m->qmp, "cont", NULL, deadline, NULL, ret_reason);
                if (r < 0)
                        return r;
        }
        luv_log_info("QEMU (pid %i) is taken up", (int) m->process.pid);
        r = note_and_adopt(m, path);
        return r < 0 ? r : 1;
}

static int note_replay(const QemuProcess *process, bool whole, void *userdata)
{
        QemuMachine *m = userdata;
        _cleanup_free_ char *path = luv_qemu_path(m, "qmp.sock");

        if (!path)
                return -ENOMEM;
        return write_note(m, process,
                          !whole                 ? NOTE_COMES
                          : m->document->running ? NOTE_WHOLE
                                                 : NOTE_RUNS,
                          path);
}

static int go_on(QemuMachine *m, uint64_t deadline, char **ret_reason)
{
        _cleanup_free_ char *path = luv_qemu_path(m, "qmp.sock");
        int r;

        if (!path)
                return -ENOMEM;
        r = luv_qemu_replay(&(QemuReplay) { .document = m->document,
                                            .stream_fd = m->stream_fd,
                                            .held = m->held,
                                            .n_held = m->n_held,
                                            .runtime_dir = m->config.runtime_dir,
                                            .deadline = deadline,
                                            .note = note_replay,
                                            .userdata = m },
                            &m->process, &m->qmp, ret_reason);
        return r < 0 ? r : note_and_adopt(m, path);
}

/* From here on another QEMU may run with it. */
static int captured(QemuMachine *m, uint64_t deadline, char **ret_reason)
{
        int r = write_note(m, &m->process, NOTE_CAPTURED, m->monitor);

        return r < 0 ? luv_reason(ret_reason, r, "QEMU (pid %i) cannot be noted in %s: %s",
                                  (int) m->process.pid, m->config.runtime_dir, strerror(-r))
                     : 0;
}

const QemuBackend luv_qemu_own = {
        .vmm = "QEMU, by luvfio-qemu",
        .stops_machine = true,
        .keeps_argv = true,
        .take_up = take_up,
        .start = start_new,
        .captured = captured,
        .go_on = go_on,
};

/* Whether it is one of those in the service manager's store that are not QEMU's. Takes FD if it is. */
static bool take_own(QemuMachine *m, const char *name, int fd)
{
        const struct {
                const char *name;
                int *fd;
        } own[] = {
                { QEMU_DOCUMENT, &m->document_fd }, { QEMU_STREAM, &m->stream_fd },
                { QEMU_BEGUN, &m->begun_fd },       { QEMU_CHANNEL, &m->channel_fd },
                { QEMU_PIPE_OUT, &m->pipe_fds[0] }, { QEMU_PIPE_IN, &m->pipe_fds[1] },
        };

        for (size_t i = 0; i < ELEMENTSOF(own); i++)
                if (streq(own[i].name, name)) {
                        safe_close(*own[i].fd);
                        *own[i].fd = fd;
                        return true;
                }
        return false;
}

static void forget_stored(QemuMachine *m)
{
        luv_qemu_unstore(m);
        luv_qemu_drop_capture(m);
        luv_qemu_drop_held(m);
}

/* What an earlier run of this program has captured and could not give back, or had begun to capture. */
static int take_stored(QemuMachine *m)
{
        _cleanup_strv_ char **names = NULL;
        int n, r = 0;

        n = sd_listen_fds_with_names(1, &names);
        for (int i = 0; i < n && r >= 0; i++) {
                int fd = SD_LISTEN_FDS_START + i;
                FdIdentity identity;

                if (take_own(m, names[i], fd))
                        continue;
                if (luv_fd_identify(fd, false, &identity, NULL) >= 0)
                        r = luv_qemu_hold(m, names[i], identity.kind, &fd);
                else
                        safe_close(fd);
        }
        if (r < 0)
                return r;
        /* The document was stored last. */
        if (m->document_fd >= 0 && m->stream_fd >= 0) {
                m->channel_fd = safe_close(m->channel_fd);
                return luv_qemu_document_read(m->document_fd, &m->document, NULL);
        }
        /* QEMU did nothing yet if it was not connected. */
        if (n > 0 && (m->begun_fd < 0 || m->channel_fd < 0 || m->stream_fd < 0 || m->pipe_fds[0] < 0 ||
                      m->pipe_fds[1] < 0))
                forget_stored(m);
        return 0;
}

int luv_qemu_begin(QemuMachine *m, char **ret_reason)
{
        int r;

        r = take_stored(m);
        if (r < 0)
                return r;
        r = m->config.backend->take_up(m, ret_reason);
        if (r != 0)
                return MIN(r, 0);
        /* It is to be put together again: `resume` follows. */
        if (luv_qemu_comes_in(m))
                return 0;
        if (m->document) {
                m->state = QEMU_CAPTURED;
                /* Or `abort` follows: luvfiod alone knows whether it jumps. */
                return waits_for_word(m) ? 0 : luv_qemu_go_on(m, luv_now_usec() + REPLAY_USEC, ret_reason);
        }
        /* What had begun is of no use without its QEMU. */
        if (m->channel_fd >= 0)
                forget_stored(m);
        return m->config.backend->start(m, ret_reason);
}
