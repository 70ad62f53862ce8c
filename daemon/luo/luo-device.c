/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/ioctl.h>
#include <sys/pidfd.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "config.h"
#include "kexec/kexec.h"
#include "luo/luo-uapi.h"
#include "luo/luo-worker.h"
#include "util/cgroup.h"
#include "util/io.h"
#include "util/string-util.h"

/* A worker that has nothing to do waits this long for more, since a VMM retrieves its fds one by one. */
#define WORKER_IDLE_USEC (200 * USEC_PER_MSEC)

#define ABI_SIZE_MAX ((size_t) 64 * 1024)

typedef struct Worker Worker;

struct Worker {
        Luo *luo;
        Worker *next, *previous;
        LuoSession *session; /* NULL: given up, only waited for */
        LuoCall *call;       /* the one that is being done */
        char *cgroup;        /* where it is, or NULL */
        int socket_fd, pidfd;
        sd_event_source *socket_source, *exit_source, *idle_source;
};

static int do_open(const char *path, int flags)
{
        return open(path, flags);
}

static int do_ioctl(int fd, unsigned long request, void *argument)
{
        return ioctl(fd, request, argument);
}

static const LuoDeviceSyscalls kernel_syscalls = {
        .open = do_open,
        .ioctl = do_ioctl,
        .kexec_loaded = luv_kexec_loaded,
        .reboot = reboot,
};
static const LuoDeviceSyscalls *syscalls = &kernel_syscalls;

void luv_luo_device_set_syscalls(const LuoDeviceSyscalls *s)
{
        syscalls = s ? s : &kernel_syscalls;
}

static const char *worker_path(void)
{
        const char *path = getenv("LUVFIO_LUO_WORKER");

        if (syscalls->worker)
                return syscalls->worker;
        return path ? path : LUVFIO_LIBEXECDIR "/" LUO_WORKER_NAME;
}

/* Workers. */

static Worker *worker_free(Worker *w)
{
        Luo *l = w->luo;

        (void) sd_event_source_disable_unref(w->socket_source);
        (void) sd_event_source_disable_unref(w->exit_source);
        (void) sd_event_source_disable_unref(w->idle_source);
        (void) safe_close(w->socket_fd);
        (void) safe_close(w->pidfd);
        if (w->previous)
                w->previous->next = w->next;
        else
                l->data = w->next;
        if (w->next)
                w->next->previous = w->previous;
        free(w->cgroup);
        free(w);
        return NULL;
}

/* It ends by itself when it sees that the socket is closed, after what it may still be doing. */
static void worker_give_up(Worker *w)
{
        w->socket_source = sd_event_source_disable_unref(w->socket_source);
        w->idle_source = sd_event_source_disable_unref(w->idle_source);
        w->socket_fd = safe_close(w->socket_fd);
        if (w->session)
                w->session->data = NULL;
        w->session = NULL;
        w->call = NULL;
}

static int dispatch_exit(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
        siginfo_t info = {};
        Worker *w = userdata;
        LuoCall *call = w->call;

        if (waitid(P_PIDFD, (id_t) w->pidfd, &info, WEXITED | WNOHANG) < 0 && errno != ECHILD)
                return negative_errno();
        /* A reply that it sent before is in the socket, which is looked at first. */
        worker_give_up(w);
        (void) worker_free(w);
        if (call)
                luv_luo_call_complete(call, -EPIPE, -EBADF);
        return 0;
}

static int dispatch_reply(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
        Worker *w = userdata;
        LuoCall *call = w->call;
        LuoWorkerReply reply;
        int r, result = -EBADF;

        r = luv_luo_worker_receive(w->socket_fd, &reply, sizeof(reply), &result);
        if (r == -EAGAIN)
                return 0;
        if (r >= 0 && (!call || reply.error > 0 ||
                       (result >= 0) != (call->op == LUO_OP_RETRIEVE && reply.error == 0))) {
                result = safe_close(result);
                r = -EPROTO;
        }
        if (r < 0) {
                worker_give_up(w);
                if (call)
                        luv_luo_call_complete(call, r, -EBADF);
                return 0;
        }

        w->call = NULL;
        r = sd_event_source_set_time_relative(w->idle_source, WORKER_IDLE_USEC);
        if (r >= 0)
                r = sd_event_source_set_enabled(w->idle_source, SD_EVENT_ONESHOT);
        if (r < 0)
                worker_give_up(w);
        luv_luo_call_complete(call, reply.error, result);
        return 0;
}

static int dispatch_idle(sd_event_source *source, uint64_t usec, void *userdata)
{
        worker_give_up(userdata);
        return 0;
}

typedef struct SpawnPlan {
        posix_spawn_file_actions_t actions;
        posix_spawnattr_t attributes;
} SpawnPlan;

static void spawn_plan_done(SpawnPlan *p)
{
        (void) posix_spawn_file_actions_destroy(&p->actions);
        (void) posix_spawnattr_destroy(&p->attributes);
}

/* These functions of libc return errno, positive. */
static int spawn_plan_init(SpawnPlan *p, int socket_fd, int session_fd)
{
        sigset_t none, pipe;
        int r;

        r = posix_spawn_file_actions_init(&p->actions);
        if (r != 0)
                return -r;
        r = posix_spawnattr_init(&p->attributes);
        if (r != 0) {
                (void) posix_spawn_file_actions_destroy(&p->actions);
                return -r;
        }

        (void) sigemptyset(&none);
        (void) sigemptyset(&pipe);
        (void) sigaddset(&pipe, SIGPIPE);
        r = posix_spawn_file_actions_adddup2(&p->actions, socket_fd, LUO_WORKER_SOCKET_FD);
        if (r == 0)
                r = posix_spawn_file_actions_adddup2(&p->actions, session_fd, LUO_WORKER_SESSION_FD);
        if (r == 0)
                r = posix_spawn_file_actions_addclosefrom_np(&p->actions, LUO_WORKER_SESSION_FD + 1);
        if (r == 0)
                r = posix_spawnattr_setsigmask(&p->attributes, &none);
        if (r == 0)
                r = posix_spawnattr_setsigdefault(&p->attributes, &pipe);
        if (r != 0) {
                spawn_plan_done(p);
                return -r;
        }
        return 0;
}

static int spawn_once(SpawnPlan *p, int cgroup_fd)
{
        static char name[] = LUO_WORKER_NAME;
        char *argv[] = { name, NULL };
        short flags = POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF;
        int r, pidfd;

        if (cgroup_fd >= 0) {
                flags |= POSIX_SPAWN_SETCGROUP;
                r = posix_spawnattr_setcgroup_np(&p->attributes, cgroup_fd);
                if (r != 0)
                        return -r;
        }
        r = posix_spawnattr_setflags(&p->attributes, flags);
        if (r != 0)
                return -r;
        r = pidfd_spawn(&pidfd, worker_path(), &p->actions, &p->attributes, argv, environ);
        return r != 0 ? -r : pidfd;
}

/* The pidfd of a worker in CGROUP, or in the nearest above it that takes a process. NULL: in ours. */
static int spawn_in(SpawnPlan *p, const char *cgroup)
{
        _cleanup_free_ char *path = NULL;

        if (!cgroup)
                return spawn_once(p, -EBADF);
        path = strdup(cgroup);
        if (!path)
                return -ENOMEM;
        for (;;) {
                _cleanup_free_ char *chosen = NULL;
                _cleanup_close_ int cgroup_fd = -EBADF;
                char *slash;
                int r;

                cgroup_fd = luv_cgroup_open_for_process(path, &chosen);
                if (cgroup_fd == -ENOENT)
                        return -ESRCH;
                if (cgroup_fd < 0)
                        return cgroup_fd;
                r = spawn_once(p, cgroup_fd);
                if (r != -EBUSY && r != -EOPNOTSUPP)
                        return r;
                /* It has children with controllers of their own. */
                slash = strrchr(chosen, '/');
                if (!slash)
                        return r;
                *slash = 0;
                free(path);
                path = TAKE_PTR(chosen);
        }
}

static int spawn(LuoSession *s, const char *cgroup, int *ret_socket_fd)
{
        _cleanup_close_ int socket_fd = -EBADF, other = -EBADF, low = -EBADF, session_fd = -EBADF;
        int pair[2], r, pidfd;
        SpawnPlan plan;

        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
                return negative_errno();
        socket_fd = pair[0];
        low = pair[1];
        /* Above the numbers where they go, or one could be overwritten by the other. */
        other = fcntl(low, F_DUPFD_CLOEXEC, LUO_WORKER_SESSION_FD + 1);
        if (other < 0)
                return negative_errno();
        session_fd = fcntl(s->session_fd, F_DUPFD_CLOEXEC, LUO_WORKER_SESSION_FD + 1);
        if (session_fd < 0)
                return negative_errno();
        if (fcntl(socket_fd, F_SETFL, O_NONBLOCK) < 0)
                return negative_errno();

        r = spawn_plan_init(&plan, other, session_fd);
        if (r < 0)
                return r;
        pidfd = spawn_in(&plan, cgroup);
        spawn_plan_done(&plan);
        if (pidfd < 0)
                return pidfd;
        *ret_socket_fd = TAKE_FD(socket_fd);
        return pidfd;
}

static int worker_new(LuoSession *s, const char *cgroup, Worker **ret)
{
        Luo *l = s->luo;
        Worker *w;
        int r;

        w = calloc(1, sizeof(*w));
        if (!w)
                return -ENOMEM;
        *w = (Worker) { .luo = l, .next = l->data, .socket_fd = -EBADF, .pidfd = -EBADF };
        if (w->next)
                w->next->previous = w;
        l->data = w;

        r = luv_free_and_strdup(&w->cgroup, cgroup);
        if (r >= 0)
                r = spawn(s, cgroup, &w->socket_fd);
        if (r < 0) {
                (void) worker_free(w);
                return r;
        }
        w->pidfd = r;
        r = sd_event_add_io(l->event, &w->exit_source, w->pidfd, EPOLLIN, dispatch_exit, w);
        if (r >= 0)
                r = sd_event_add_io(l->event, &w->socket_source, w->socket_fd, EPOLLIN, dispatch_reply, w);
        /* A reply is read before its sender's end is noticed. */
        if (r >= 0)
                r = sd_event_source_set_priority(w->exit_source, SD_EVENT_PRIORITY_NORMAL + 1);
        if (r >= 0)
                r = sd_event_add_time(l->event, &w->idle_source, CLOCK_MONOTONIC, UINT64_MAX, 0,
                                      dispatch_idle, w);
        if (r >= 0)
                r = sd_event_source_set_enabled(w->idle_source, SD_EVENT_OFF);
        if (r < 0) {
                (void) pidfd_send_signal(w->pidfd, SIGKILL, NULL, 0);
                (void) waitid(P_PIDFD, (id_t) w->pidfd, NULL, WEXITED);
                (void) worker_free(w);
                return r;
        }
        (void) sd_event_source_set_description(w->socket_source, "luo-worker-reply");
        (void) sd_event_source_set_description(w->exit_source, "luo-worker-exit");
        (void) sd_event_source_set_description(w->idle_source, "luo-worker-idle");
        w->session = s;
        s->data = w;
        *ret = w;
        return 0;
}

static void worker_start(LuoCall *c, const char *cgroup)
{
        LuoWorkerRequest request = { .op = (uint32_t) c->op, .token = c->token };
        Worker *w = c->session->data;
        int r;

        if (w && !streq_ptr(w->cgroup, cgroup)) {
                worker_give_up(w);
                w = NULL;
        }
        if (!w) {
                r = worker_new(c->session, cgroup, &w);
                if (r < 0) {
                        luv_luo_call_complete(c, r, -EBADF);
                        return;
                }
        }
        (void) sd_event_source_set_enabled(w->idle_source, SD_EVENT_OFF);
        r = luv_luo_worker_send(w->socket_fd, &request, sizeof(request), c->fd);
        if (r < 0) {
                worker_give_up(w);
                luv_luo_call_complete(c, r, -EBADF);
                return;
        }
        w->call = c;
}

/* The backend. */

static void device_start(LuoCall *c)
{
        LuoSession *s = c->session;
        bool direct = !s->cgroup;
        int r;

        if (s->cgroup && c->op != LUO_OP_FINISH) {
                r = luv_cgroup_is_frozen(s->cgroup);
                if (r < 0) {
                        luv_luo_call_complete(c, r == -ENOENT ? -ESRCH : r, -EBADF);
                        return;
                }
                /* A worker in there would stand still with it. */
                direct = r > 0;
        }
        if (c->op != LUO_OP_FINISH && direct) {
                r = luv_luo_session_ioctl(syscalls->ioctl, s->session_fd, c->op, c->fd, c->token);
                luv_luo_call_complete(c, MIN(r, 0), c->op == LUO_OP_RETRIEVE && r >= 0 ? r : -EBADF);
                return;
        }
        /* FINISH charges nothing, and its machine may be gone or frozen: where it is done does not matter.
         */
        worker_start(c, c->op == LUO_OP_FINISH ? NULL : s->cgroup);
}

static int device_open(void)
{
        int fd = syscalls->open(LUO_DEVICE, O_RDWR | O_CLOEXEC);

        return fd < 0 ? negative_errno() : fd;
}

static int device_probe(Luo *l)
{
        int fd = device_open();

        if (fd < 0)
                return fd == -ENXIO || fd == -ENODEV ? -ENOENT : fd;
        (void) close(fd);
        return 0;
}

static int device_read_abi(Luo *l, char **ret)
{
        return luv_read_file(AT_FDCWD, LUO_ABI_FILE, ABI_SIZE_MAX, ret, NULL);
}

static int device_open_session(Luo *l, bool incoming, const char *name)
{
        LuoUapiSession argument = { .size = sizeof(argument), .fd = -1 };
        _cleanup_close_ int fd = -EBADF;

        fd = device_open();
        if (fd == -ENOENT || fd == -ENXIO)
                return -ENODEV;
        if (fd < 0)
                return fd;
        strncpy((char *) argument.name, name, sizeof(argument.name) - 1);
        if (syscalls->ioctl(fd, incoming ? LUO_IOCTL_RETRIEVE_SESSION : LUO_IOCTL_CREATE_SESSION,
                            &argument) < 0)
                return negative_errno();
        return argument.fd < 0 ? -EPROTO : argument.fd;
}

static int device_session_attach(LuoSession *s)
{
        LuoUapiName argument = { .size = sizeof(argument) };

        if (syscalls->ioctl(s->session_fd, LUO_IOCTL_GET_NAME, &argument) < 0)
                return errno == EBADF ? -EBADF : -EINVAL;
        argument.name[sizeof(argument.name) - 1] = 0;
        return streq((const char *) argument.name, s->name) ? 0 : -EINVAL;
}

static void device_session_detach(LuoSession *s)
{
        Worker *w = s->data;

        if (!w)
                return;
        /*
         * The worker has a copy of the session's fd. An outgoing session is given up with its last copy, so
         * nothing that is still done for it is wanted. A retrieve must not be interrupted: its failure
         * stays.
         */
        if (!s->incoming)
                (void) pidfd_send_signal(w->pidfd, SIGKILL, NULL, 0);
        worker_give_up(w);
}

static int device_jump(Luo *l, char *const *argv, const int *kept, char *const *kept_names, size_t n_kept)
{
        int r;

        /* Somebody may have unloaded it; what kexec_load(2) put in its place the kernel refuses. */
        r = syscalls->kexec_loaded();
        if (r < 0)
                return r;
        if (r == 0)
                return -EINVAL;
        if (syscalls->reboot(RB_KEXEC) < 0)
                return negative_errno();
        /* It does not come back with success. */
        return -EIO;
}

static int device_init(Luo *l, int handed_fd, const char *fail)
{
        (void) safe_close(handed_fd);
        return 0;
}

static void device_done(Luo *l)
{
        Worker *w;

        while ((w = l->data)) {
                /* Sessions are gone: what is left is in its last call, or about to end. */
                (void) waitid(P_PIDFD, (id_t) w->pidfd, NULL, WEXITED | WNOHANG);
                (void) worker_free(w);
        }
}

const LuoBackendOps luv_luo_device_ops = {
        .init = device_init,
        .done = device_done,
        .probe = device_probe,
        .read_abi = device_read_abi,
        .open_session = device_open_session,
        .session_attach = device_session_attach,
        .session_detach = device_session_detach,
        .start = device_start,
        .jump = device_jump,
};
