/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>

#include "agents/qemu-private.h"
#include "machine/peer.h"
#include "util/io.h"
#include "util/log.h"
#include "util/string-util.h"
#include "util/time-util.h"

/* So that the next run of this program finds QEMU: its pid, when it was started, where its monitor is. */
static int write_note(const QemuMachine *m, const char *monitor)
{
        _cleanup_free_ char *path = luv_qemu_path(m, "qemu"), *text = NULL;
        uint64_t start;
        int r;

        r = luv_process_start_time(m->process.pid, &start);
        if (r < 0)
                return r;
        text = luv_strf("%i %llu %s\n", (int) m->process.pid, (unsigned long long) start, monitor);
        return path && text ? luv_write_file_atomic(AT_FDCWD, path, text, strlen(text), 0600) : -ENOMEM;
}

static int note_and_adopt(QemuMachine *m, const char *monitor)
{
        int r;

        r = write_note(m, monitor);
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
                                          .cpr_fd = -EBADF },
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

/* 1: one that an earlier run of this program has noted lives; *RET is where its monitor is. */
static int find_noted(QemuMachine *m, char **ret)
{
        _cleanup_free_ char *path = luv_qemu_path(m, "qemu"), *line = NULL;
        unsigned long long start;
        uint64_t now;
        int pid, at = 0, r;

        if (!path)
                return -ENOMEM;
        r = luv_read_line_file(AT_FDCWD, path, &line);
        if (r < 0 || sscanf(line, "%i %llu %n", &pid, &start, &at) != 2 || at == 0 || pid <= 0)
                return r == -ENOMEM ? r : 0;
        r = luv_qemu_process_open(pid, &m->process);
        if (r < 0)
                return r == -ESRCH ? 0 : r;
        /* Or another process has its number by now. */
        if (luv_process_start_time(pid, &now) < 0 || now != start) {
                luv_qemu_process_done(&m->process);
                return 0;
        }
        *ret = strdup(line + at);
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

/*
 * A QEMU that is there already. 1: it runs; 0: there is none, or none that could run: one that has been
 * captured, or one that a machine was coming into.
 */
static int take_up(QemuMachine *m, char **ret_reason)
{
        uint64_t deadline = luv_now_usec() + CALL_USEC;
        _cleanup_free_ char *path = NULL, *status = NULL;
        int r;

        r = find_noted(m, &path);
        if (r == 0 && m->config.monitor && !luv_qemu_comes_in(m))
                r = find_named(m, &path, ret_reason);
        if (r <= 0)
                return r;
        if (!luv_qemu_process_is_stopped(&m->process)) {
                r = luv_qemu_monitor(path, deadline, &m->qmp, ret_reason);
                if (r >= 0)
                        r = luv_qemu_status(m->qmp, &status, ret_reason);
                if (r < 0)
                        return r;
        }
        if (!status || streq(status, "inmigrate") || streq(status, "postmigrate") ||
            streq(status, "finish-migrate")) {
                r = luv_qemu_process_kill(&m->process, deadline);
                luv_qemu_release(m);
                return r;
        }
        luv_log_info("QEMU (pid %i) is taken up", (int) m->process.pid);
        r = note_and_adopt(m, path);
        return r < 0 ? r : 1;
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
                                            .deadline = deadline },
                            &m->process, &m->qmp, ret_reason);
        return r < 0 ? r : note_and_adopt(m, path);
}

const QemuBackend luv_qemu_own = {
        .vmm = "QEMU, by luvfio-qemu",
        .stops_machine = true,
        .keeps_argv = true,
        .take_up = take_up,
        .start = start_new,
        .go_on = go_on,
};

/* What an earlier run of this program has captured and could not give back. 1: it is here. */
static int take_stored(QemuMachine *m)
{
        _cleanup_strv_ char **names = NULL;
        bool document = false;
        int n, r = 0;

        n = sd_listen_fds_with_names(1, &names);
        for (int i = 0; i < n && r >= 0; i++) {
                int fd = SD_LISTEN_FDS_START + i;
                FdIdentity identity;

                if (streq(names[i], QEMU_DOCUMENT) && m->document_fd < 0) {
                        m->document_fd = fd;
                        document = true;
                } else if (streq(names[i], QEMU_STREAM) && m->stream_fd < 0)
                        m->stream_fd = fd;
                else if (luv_fd_identify(fd, false, &identity, NULL) >= 0)
                        r = luv_qemu_hold(m, names[i], identity.kind, &fd);
                else
                        safe_close(fd);
        }
        if (r < 0 || !document || m->stream_fd < 0)
                return MIN(r, 0);
        r = luv_qemu_document_read(m->document_fd, &m->document, NULL);
        return r < 0 ? r : 1;
}

int luv_qemu_begin(QemuMachine *m, char **ret_reason)
{
        int stored, r;

        stored = take_stored(m);
        if (stored < 0)
                return stored;
        r = m->config.backend->take_up(m, ret_reason);
        if (r != 0)
                return MIN(r, 0);
        /* It is to be put together again: `resume` follows. */
        if (luv_qemu_comes_in(m))
                return 0;
        /* Whatever luvfiod makes of the update, this machine has to go on. */
        if (stored > 0)
                return luv_qemu_go_on(m, luv_now_usec() + REPLAY_USEC, ret_reason);
        return m->config.backend->start(m, ret_reason);
}
