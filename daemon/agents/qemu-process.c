/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/vfio.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "agents/qemu-process.h"
#include "agents/vfio-reset.h"
#include "util/io.h"
#include "util/string-util.h"
#include "util/time-util.h"

#define MONITOR "luvfio-monitor"
#define END_USEC (2 * USEC_PER_SEC)
#define CMDLINE_SIZE_MAX ((size_t) 8 * 1024 * 1024)

void luv_qemu_process_done(QemuProcess *p)
{
        p->pidfd = safe_close(p->pidfd);
        p->argv = luv_strv_free(p->argv);
        free(p->cwd);
        *p = QEMU_PROCESS_NULL;
}

int luv_qemu_argv_clean(char *const *argv, char ***ret)
{
        _cleanup_strv_ char **v = NULL;
        int r = 0;

        for (size_t i = 0; argv[i] && r >= 0; i++) {
                const char *option = argv[i], *value = argv[i + 1];

                /* QEMU takes two dashes for one. */
                if (startswith(option, "--"))
                        option++;
                if (i > 0 && streq(option, "-S"))
                        continue;
                if (i > 0 && value &&
                    (streq(option, "-incoming") ||
                     (streq(option, "-chardev") && startswith(value, "socket,id=" MONITOR ",")) ||
                     (streq(option, "-qmp") && streq(value, "chardev:" MONITOR)))) {
                        i++;
                        continue;
                }
                r = luv_strv_extend(&v, argv[i]);
        }
        if (r >= 0)
                *ret = TAKE_PTR(v);
        return r;
}

static int read_argv(pid_t pid, char ***ret)
{
        _cleanup_free_ char *path = luv_strf("/proc/%i/cmdline", (int) pid), *text = NULL;
        _cleanup_strv_ char **v = NULL;
        size_t size;
        int r;

        if (!path)
                return -ENOMEM;
        r = luv_read_file(AT_FDCWD, path, CMDLINE_SIZE_MAX, &text, &size);
        for (size_t i = 0; r >= 0 && i < size; i += strlen(text + i) + 1)
                r = luv_strv_extend(&v, text + i);
        if (r < 0)
                return r == -ENOENT ? -ESRCH : r;
        if (!v)
                return -ESRCH;
        return luv_qemu_argv_clean(v, ret);
}

static int read_link(const char *path, char **ret)
{
        char link[PATH_MAX];
        ssize_t n;
        char *s;

        n = readlink(path, link, sizeof(link));
        if (n < 0)
                return negative_errno();
        s = strndup(link, (size_t) n);
        if (!s)
                return -ENOMEM;
        *ret = s;
        return 0;
}

int luv_qemu_process_open(pid_t pid, QemuProcess *ret)
{
        _cleanup_(luv_qemu_process_done) QemuProcess p = QEMU_PROCESS_NULL;
        _cleanup_free_ char *path = luv_strf("/proc/%i/cwd", (int) pid);
        int r;

        if (!path)
                return -ENOMEM;
        p.pid = pid;
        p.pidfd = pidfd_open(pid, 0);
        if (p.pidfd < 0)
                return negative_errno();
        r = read_argv(pid, &p.argv);
        if (r >= 0)
                r = read_link(path, &p.cwd);
        if (r < 0)
                return r;
        *ret = p;
        p = QEMU_PROCESS_NULL;
        return 0;
}

bool luv_qemu_process_is_stopped(const QemuProcess *p)
{
        _cleanup_free_ char *path = luv_strf("/proc/%i/stat", (int) p->pid), *line = NULL;
        const char *state;

        if (!path || luv_read_line_file(AT_FDCWD, path, &line) < 0)
                return false;
        state = strrchr(line, ')');
        return state && startswith(state, ") T");
}

static int wait_end(const QemuProcess *p, uint64_t deadline)
{
        struct pollfd x = { .fd = p->pidfd, .events = POLLIN };
        uint64_t left;

        while (poll(&x, 1, 0) == 0) {
                left = luv_usec_left(deadline);
                if (left == 0)
                        return -ETIMEDOUT;
                (void) poll(&x, 1, (int) MIN(left / USEC_PER_MSEC + 1, (uint64_t) INT32_MAX));
        }
        return 0;
}

bool luv_qemu_process_is_ending(const QemuProcess *p)
{
        return p->pid > 0 && wait_end(p, luv_now_usec() + END_USEC) >= 0;
}

int luv_qemu_process_signal(const QemuProcess *p, int sig)
{
        return pidfd_send_signal(p->pidfd, sig, NULL, 0) < 0 ? negative_errno() : 0;
}

int luv_qemu_process_kill(const QemuProcess *p, uint64_t deadline)
{
        int r;

        r = luv_qemu_process_signal(p, SIGKILL);
        if (r < 0 && r != -ESRCH)
                return r;
        r = wait_end(p, deadline);
        if (r < 0)
                return r;
        /* Ours, or somebody else's. */
        (void) waitid(P_PIDFD, (id_t) p->pidfd, &(siginfo_t) {}, WEXITED);
        return 0;
}

void luv_qemu_files_done(QemuFiles *f)
{
        for (size_t i = 0; i < f->n; i++)
                safe_close(f->items[i].fd);
        free(f->items);
        luv_strv_free(f->legacy);
        luv_strv_free(f->reset);
        luv_strv_free(f->unsupported);
        *f = (QemuFiles) {};
}

static bool is_memory(const char *link)
{
        return startswith(link, "/memfd:") || startswith(link, "/dev/shm/") ||
               startswith(link, "/dev/hugepages");
}

/* A memfd that has come over a jump has no name any more. */
static bool may_cross(const char *link)
{
        return is_memory(link) || streq(link, "/ (deleted)") || startswith(link, "/dev/iommu") ||
               startswith(link, "/dev/vfio/devices/") || startswith(link, "anon_inode:[iommufd]") ||
               startswith(link, "anon_inode:[vfio-device]");
}

/* libvirt opens devices for a QEMU that has them already. Nothing can be done with such a file. */
static bool is_bound(int fd)
{
        struct vfio_device_info info = { .argsz = sizeof(info) };

        return ioctl(fd, VFIO_DEVICE_GET_INFO, &info) >= 0 || errno != EINVAL;
}

static int add_file(QemuFiles *f, int *fd, const FdIdentity *identity)
{
        QemuFile *items;

        for (size_t i = 0; i < f->n; i++)
                if (luv_fd_same(f->items[i].fd, *fd) > 0)
                        return 0;
        items = reallocarray(f->items, f->n + 1, sizeof(QemuFile));
        if (!items)
                return -ENOMEM;
        f->items = items;
        f->items[f->n++] = (QemuFile) { .fd = TAKE_FD(*fd), .identity = *identity };
        return 0;
}

static int look_at_file(const QemuProcess *p, int number, const char *link, QemuFiles *f)
{
        _cleanup_close_ int fd = -EBADF;
        _cleanup_free_ char *reason = NULL, *what = NULL;
        FdIdentity identity;
        int r;

        if (startswith(link, "/dev/vfio/") && !startswith(link, "/dev/vfio/devices/"))
                return streq(link, "/dev/vfio/vfio") ? 0 : luv_strv_extend(&f->legacy, link);
        if (!may_cross(link))
                return 0;
        fd = pidfd_getfd(p->pidfd, number, 0);
        if (fd < 0)
                return errno == EBADF ? 0 : negative_errno();
        r = luv_fd_identify(fd, false, &identity, &reason);
        if (r == -EOPNOTSUPP && is_memory(link)) {
                what = luv_strf("%s %s", link, reason ? reason : "cannot be preserved");
                return what ? luv_strv_extend(&f->unsupported, what) : -ENOMEM;
        }
        if (r == -EOPNOTSUPP || (r >= 0 && identity.kind == FD_KIND_MEMFD && identity.size == 0))
                return 0;
        if (r < 0 || identity.kind != FD_KIND_VFIO)
                return r < 0 ? r : add_file(f, &fd, &identity);
        if (!is_bound(fd))
                return 0;
        r = luv_vfio_ask_reset_with_board(fd);
        if (r > 0)
                r = luv_strv_extend(&f->reset, identity.device);
        return r < 0 ? r : add_file(f, &fd, &identity);
}

int luv_qemu_process_files(const QemuProcess *p, QemuFiles *ret)
{
        _cleanup_(luv_qemu_files_done) QemuFiles f = {};
        _cleanup_free_ char *path = luv_strf("/proc/%i/fd", (int) p->pid);
        struct dirent *e;
        DIR *dir;
        int r = 0;

        dir = path ? opendir(path) : NULL;
        if (!dir)
                return path ? negative_errno() : -ENOMEM;
        while (r >= 0 && (e = readdir(dir))) {
                _cleanup_free_ char *name = NULL, *link = NULL;
                uint64_t number;

                if (luv_parse_u64(e->d_name, &number) < 0)
                        continue;
                name = luv_strf("%s/%s", path, e->d_name);
                r = name ? read_link(name, &link) : -ENOMEM;
                if (r >= 0)
                        r = look_at_file(p, (int) number, link, &f);
                else if (r == -ENOENT)
                        r = 0;
        }
        closedir(dir);
        if (r < 0)
                return r;
        *ret = f;
        f = (QemuFiles) {};
        return 0;
}

static int add_option(char ***argv, const char *option, char *value /* taken */)
{
        int r = value ? luv_strv_extend(argv, option) : -ENOMEM;

        if (r >= 0)
                r = luv_strv_extend(argv, value);
        free(value);
        return r;
}

static int build_argv(const QemuStart *s, char ***ret)
{
        _cleanup_strv_ char **argv = NULL;
        int r;

        r = luv_strv_copy(s->argv, &argv);
        /* The same board, whatever the alias on the command line stands for by now. */
        if (r >= 0 && s->machine_type)
                r = add_option(&argv, "-machine", luv_strf("type=%s", s->machine_type));
        if (r >= 0)
                r = add_option(&argv, "-chardev",
                               luv_strf("socket,id=" MONITOR ",fd=%i,server=on,wait=off", s->monitor_fd));
        if (r >= 0)
                r = add_option(&argv, "-qmp", strdup("chardev:" MONITOR));
        if (r >= 0 && s->cpr_fd >= 0) {
                r = add_option(&argv, "-incoming",
                               luv_strf("{\"channel-type\":\"main\",\"addr\":{\"transport\":\"socket\","
                                        "\"type\":\"fd\",\"str\":\"%i\"}}",
                                        s->main_fd));
                if (r >= 0)
                        r = add_option(&argv, "-incoming",
                                       luv_strf("{\"channel-type\":\"cpr\",\"addr\":{\"transport\":"
                                                "\"socket\",\"type\":\"fd\",\"str\":\"%i\"}}",
                                                s->cpr_fd));
                /* It runs when it is told to. */
                if (r >= 0)
                        r = luv_strv_extend(&argv, "-S");
        }
        if (r >= 0)
                *ret = TAKE_PTR(argv);
        return r;
}

/* In the child; does not return. */
static void execute(const QemuStart *s, char **argv, int parent_fd)
{
        sigset_t none;
        int error;
        char word;

        sigemptyset(&none);
        (void) sigprocmask(SIG_SETMASK, &none, NULL);
        if (read(parent_fd, &word, sizeof(word)) != sizeof(word))
                _exit(127);
        if ((s->cwd && chdir(s->cwd) < 0) || luv_fd_set_cloexec(s->monitor_fd, false) < 0 ||
            (s->cpr_fd >= 0 &&
             (luv_fd_set_cloexec(s->cpr_fd, false) < 0 || luv_fd_set_cloexec(s->main_fd, false) < 0)))
                error = errno;
        else {
                (void) execvp(argv[0], argv);
                error = errno;
        }
        (void) luv_write_all(parent_fd, &error, sizeof(error));
        _exit(127);
}

static int cannot_start(const QemuStart *s, int error, char **ret_reason)
{
        return luv_reason(ret_reason, error, "%s cannot be started: %s", s->argv[0], strerror(-error));
}

/* The child ends if CHILD_FD, which this takes, is closed before it is let go. */
static int note_and_let_go(const QemuStart *start, QemuProcess *p, int child_fd, char **ret_reason)
{
        _cleanup_close_ int fd = child_fd;
        int error = 0, r;

        /* It is our child: the pid is its own until it is waited for. */
        p->pidfd = pidfd_open(p->pid, 0);
        if (p->pidfd < 0)
                return cannot_start(start, negative_errno(), ret_reason);
        r = start->note ? start->note(p, false, start->userdata) : 0;
        if (r < 0)
                return luv_reason(ret_reason, r, "QEMU (pid %i) cannot be noted: %s", (int) p->pid,
                                  strerror(-r));
        /* Closed without a word where the program is executed. */
        if (send(fd, "", 1, MSG_NOSIGNAL) != 1 || read(fd, &error, sizeof(error)) > 0)
                return cannot_start(start, error > 0 ? -error : -EIO, ret_reason);
        return 0;
}

int luv_qemu_start(const QemuStart *start, QemuProcess *ret, char **ret_reason)
{
        _cleanup_(luv_qemu_process_done) QemuProcess p = QEMU_PROCESS_NULL;
        _cleanup_strv_ char **argv = NULL;
        int pair[2], r;

        r = build_argv(start, &argv);
        if (r >= 0)
                r = luv_strv_copy(start->argv, &p.argv);
        if (r >= 0)
                r = luv_free_and_strdup(&p.cwd, start->cwd);
        if (r >= 0 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
                r = negative_errno();
        if (r < 0)
                return r;
        p.pid = fork();
        if (p.pid == 0) {
                safe_close(pair[0]);
                execute(start, argv, pair[1]);
        }
        r = p.pid < 0 ? negative_errno() : 0;
        safe_close(pair[1]);
        if (r < 0) {
                safe_close(pair[0]);
                return cannot_start(start, r, ret_reason);
        }
        r = note_and_let_go(start, &p, pair[0], ret_reason);
        if (r < 0) {
                (void) waitpid(p.pid, NULL, 0);
                return r;
        }
        *ret = p;
        p = QEMU_PROCESS_NULL;
        return 0;
}
