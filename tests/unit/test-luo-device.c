/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <linux/vfio.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "kexec/kexec.h"
#include "luo-fixture.h"
#include "luo/fd-identify.h"
#include "luo/luo-uapi.h"
#include "luo/luo-worker.h"
#include "util/cgroup.h"
#include "util/io.h"
#include "util/string-util.h"

/*
 * Without arguments: the device backend against system calls of our own, everywhere. With --before KERNEL
 * [INITRD], and after that live update --after: against the kernel; that jumps, so only in the test host.
 */

/* This program is the worker, too: with ioctls of its own unless $TEST_WORKER_REAL is set. */

#define TOKEN_ERROR UINT64_C(1000) /* and more: fails with the errno that is above it */
#define TOKEN_DIE UINT64_C(666)
#define TOKEN_SLEEP UINT64_C(667)
#define TOKEN_NONSENSE UINT64_C(668)
#define TOKEN_NO_FD UINT64_C(669)

static int fake_session_ioctl(int fd, unsigned long request, void *argument)
{
        LuoUapiFd *a = argument;
        char line[64];
        int n;

        /* The session's fd is a file, in which everything that is done to it is written down. */
        n = snprintf(line, sizeof(line), "%i %lx %llu\n", getpid(), request & 0xff,
                     request == LUO_IOCTL_FINISH ? 0ull : (unsigned long long) a->token);
        if (write(fd, line, (size_t) n) != n)
                return -1;
        if (request == LUO_IOCTL_FINISH)
                return 0;
        if (a->token >= TOKEN_ERROR) {
                errno = (int) (a->token - TOKEN_ERROR);
                return -1;
        }
        if (a->token == TOKEN_DIE)
                (void) raise(SIGKILL);
        if (a->token == TOKEN_SLEEP)
                (void) usleep(300 * 1000);
        if (a->token == TOKEN_NONSENSE)
                (void) write(LUO_WORKER_SOCKET_FD, "nonsense!", 9);
        if (request == LUO_IOCTL_PRESERVE_FD)
                return fcntl(a->fd, F_GETFD) < 0 ? -1 : 0;
        if (a->token == TOKEN_NO_FD) {
                a->fd = -1;
                return 0;
        }
        n = snprintf(line, sizeof(line), "file %llu", (unsigned long long) a->token);
        a->fd = memfd_create("file", MFD_CLOEXEC);
        return write(a->fd, line, (size_t) n) == n ? 0 : -1;
}

static int real_ioctl(int fd, unsigned long request, void *argument)
{
        return ioctl(fd, request, argument);
}

static int worker(void)
{
        return luv_luo_worker_run(LUO_WORKER_SOCKET_FD, LUO_WORKER_SESSION_FD,
                                  getenv("TEST_WORKER_REAL") ? real_ioctl : fake_session_ioctl) < 0
                               ? EXIT_FAILURE
                               : EXIT_SUCCESS;
}

/* A kernel of our own. */

static sd_event *event;
static unsigned n_busy, n_opened;
static int open_error, create_error, reboot_error, is_loaded;
static char session_name[64];

static int fake_open(const char *path, int flags)
{
        ck_assert_str_eq(path, "/dev/liveupdate");
        ck_assert_int_eq(flags, O_RDWR | O_CLOEXEC);
        n_opened++;
        if (n_busy > 0) {
                n_busy--;
                errno = EBUSY;
                return -1;
        }
        if (open_error) {
                errno = open_error;
                return -1;
        }
        return open("/dev/null", flags);
}

static int fake_ioctl(int fd, unsigned long request, void *argument)
{
        LuoUapiSession *session = argument;
        LuoUapiName *name = argument;

        switch (request) {
        case LUO_IOCTL_CREATE_SESSION:
        case LUO_IOCTL_RETRIEVE_SESSION:
                ck_assert_uint_eq(session->size, 72);
                ck_assert_int_eq(session->fd, -1);
                ck_assert_uint_eq(session->name[63], 0);
                if (create_error) {
                        errno = create_error;
                        return -1;
                }
                session->fd = memfd_create("session", MFD_CLOEXEC);
                (void) snprintf(session_name, sizeof(session_name), "%s", (char *) session->name);
                return 0;
        case LUO_IOCTL_GET_NAME:
                ck_assert_uint_eq(name->size, 72);
                ck_assert_uint_eq(name->reserved, 0);
                if (fcntl(fd, F_GET_SEALS) < 0) {
                        errno = ENOTTY;
                        return -1;
                }
                (void) snprintf((char *) name->name, sizeof(name->name), "%s", session_name);
                return 0;
        default:
                return fake_session_ioctl(fd, request, argument);
        }
}

static int fake_loaded(void)
{
        return is_loaded;
}

static int fake_reboot(int command)
{
        ck_assert_int_eq(command, RB_KEXEC);
        errno = reboot_error;
        return -1;
}

static LuoDeviceSyscalls fake = {
        .open = fake_open,
        .ioctl = fake_ioctl,
        .kexec_loaded = fake_loaded,
        .reboot = fake_reboot,
        .worker = "/proc/self/exe",
};

static Luo *luo;
static char *own_cgroup;

static void setup(void)
{
        int fd;

        n_busy = n_opened = 0;
        open_error = create_error = reboot_error = is_loaded = 0;
        fake.worker = "/proc/self/exe";
        luv_luo_device_set_syscalls(&fake);
        ck_assert_int_ge(sd_event_new(&event), 0);
        ck_assert_int_eq(luv_luo_new(event, LUO_BACKEND_DEVICE, -EBADF, NULL, &luo), 0);
        ck_assert_int_eq(luv_cgroup_of_pid(0, &own_cgroup), 0);
        /* Where there is no unified tree at all no worker can be put into a part of it. */
        fd = luv_cgroup_open(own_cgroup);
        if (fd < 0)
                own_cgroup = (free(own_cgroup), NULL);
        else
                (void) close(fd);
}

static void teardown(void)
{
        luo = luv_luo_unref(luo);
        event = sd_event_unref(event);
        own_cgroup = (free(own_cgroup), NULL);
}

static LuoSession *open_session(bool incoming)
{
        LuoSession *s;

        ck_assert_int_eq(incoming ? do_retrieve_session(event, luo, "luvfio-a-1", &s)
                                  : do_create(event, luo, "luvfio-a-1", &s),
                         0);
        return s;
}

/* What was done to the session: the pids in order, and how many different ones. */
static size_t read_done(LuoSession *s, pid_t pids[static 16], size_t *ret_different)
{
        char text[1024] = "", *line, *rest = text;
        size_t n = 0;

        *ret_different = 0;
        ck_assert_int_ge(pread(luv_luo_session_get_fd(s), text, sizeof(text) - 1, 0), 0);
        while ((line = strsep(&rest, "\n")) && *line) {
                ck_assert_uint_lt(n, 16);
                pids[n] = atoi(line);
                *ret_different += n == 0 || pids[n] != pids[n - 1];
                n++;
        }
        return n;
}

START_TEST(devices)
{
        _cleanup_(luv_luo_session_unrefp) LuoSession *s = NULL, *adopted = NULL;
        _cleanup_close_ int copy = -EBADF;
        Waited w = WAITED_INIT;
        char *abi = NULL;
        uint64_t begin;
        int r;

        ck_assert_str_eq(luv_luo_backend_to_string(luv_luo_get_backend(luo)), "device");
        ck_assert_int_eq(luv_luo_probe(luo), 0);
        open_error = ENOENT;
        ck_assert_int_eq(luv_luo_probe(luo), -ENOENT);
        ck_assert_int_eq(do_create(event, luo, "luvfio-a-1", &s), -ENODEV);
        open_error = ENXIO;
        ck_assert_int_eq(luv_luo_probe(luo), -ENOENT);
        open_error = EIO;
        ck_assert_int_eq(luv_luo_probe(luo), -EIO);
        ck_assert_int_eq(do_retrieve_session(event, luo, "luvfio-a-1", &s), -EIO);
        open_error = 0;
        n_busy = 1;
        ck_assert_int_eq(luv_luo_probe(luo), -EBUSY);
        create_error = EEXIST;
        ck_assert_int_eq(do_create(event, luo, "luvfio-a-1", &s), -EEXIST);
        create_error = 0;

        /* Busy is tried again, and until the deadline only. */
        n_busy = 5;
        n_opened = 0;
        ck_assert_int_eq(do_create(event, luo, "luvfio-a-1", &s), 0);
        ck_assert_uint_eq(n_opened, 6);
        n_busy = UINT32_MAX;
        begin = luv_now_usec();
        ck_assert_int_eq(luv_luo_session_create(luo, "b", begin + 50000, waited_session, &w, NULL), 0);
        ck_assert_int_eq(wait_for(event, &w), -ETIME);
        ck_assert_uint_ge(luv_now_usec(), begin + 50000);

        /* What comes back from the store must be the session that its name says. */
        copy = fcntl(luv_luo_session_get_fd(s), F_DUPFD_CLOEXEC, 3);
        ck_assert_int_eq(luv_luo_session_adopt(luo, "luvfio-b-1", copy, true, &adopted), -EINVAL);
        ck_assert_int_eq(luv_luo_session_adopt(luo, "luvfio-a-1", STDIN_FILENO, true, &adopted), -EINVAL);
        ck_assert_int_eq(luv_luo_session_adopt(luo, "luvfio-a-1", copy, true, &adopted), 0);
        TAKE_FD(copy);
        ck_assert_int_eq(luv_luo_session_set_cgroup(s, "relative"), -EINVAL);

        r = luv_luo_read_abi(luo, &abi);
        ck_assert(r == 0 || r == -ENOENT);
        free(abi);
}
END_TEST

START_TEST(jumps)
{
        ck_assert_int_eq(luv_luo_jump(luo, NULL, NULL, NULL, 0), -EINVAL);
        is_loaded = -ENOENT;
        ck_assert_int_eq(luv_luo_jump(luo, NULL, NULL, NULL, 0), -ENOENT);
        is_loaded = 1;
        reboot_error = EBUSY;
        ck_assert_int_eq(luv_luo_jump(luo, NULL, NULL, NULL, 0), -EBUSY);
}
END_TEST

/* The small records need no worker. */
START_TEST(directly)
{
        _cleanup_(luv_luo_session_unrefp) LuoSession *s = open_session(true);
        _cleanup_close_ int file = -EBADF, memfd = make_memfd("x", "x");
        size_t different;
        pid_t pids[16];

        file = do_retrieve(event, s, 7);
        ck_assert_int_ge(file, 0);
        check_content(file, "file 7");
        ck_assert_int_eq(do_retrieve(event, s, TOKEN_ERROR + EAGAIN), -EAGAIN);
        ck_assert_int_eq(do_preserve(event, s, memfd, 8), 0);
        ck_assert_int_eq(do_preserve(event, s, memfd, TOKEN_ERROR + EEXIST), -EEXIST);
        ck_assert_uint_eq(read_done(s, pids, &different), 4);
        for (size_t i = 0; i < 4; i++)
                ck_assert_int_eq(pids[i], getpid());
        /* This may take its time. */
        ck_assert_int_eq(do_finish(event, s), 0);
        ck_assert_uint_eq(read_done(s, pids, &different), 5);
        ck_assert_int_ne(pids[4], getpid());
}
END_TEST

START_TEST(by_worker)
{
        _cleanup_(luv_luo_session_unrefp) LuoSession *s = open_session(true);
        _cleanup_close_ int memfd = make_memfd("x", "x");
        int fds[2];
        Waited w[4];
        size_t different, n = 0;
        pid_t pids[16];

        if (!own_cgroup)
                return;
        ck_assert_int_eq(luv_luo_session_set_cgroup(s, own_cgroup), 0);
        for (size_t i = 0; i < ELEMENTSOF(w); i++)
                w[i] = (Waited) WAITED_INIT;
        ck_assert_int_eq(luv_luo_session_retrieve_fd(s, 1, TEST_DEADLINE, waited_fd, &w[0], NULL), 0);
        ck_assert_int_eq(luv_luo_session_retrieve_fd(s, TOKEN_ERROR + ENOENT, TEST_DEADLINE, waited_fd,
                                                     &w[1], NULL),
                         0);
        ck_assert_int_eq(luv_luo_session_retrieve_fd(s, 2, TEST_DEADLINE, waited_fd, &w[2], NULL), 0);
        ck_assert_int_eq(luv_luo_session_preserve(s, memfd, 3, TEST_DEADLINE, waited_done, &w[3], NULL), 0);
        ck_assert_int_eq(wait_for(event, &w[3]), 0);
        ck_assert_int_eq(w[0].error, 0);
        ck_assert_int_eq(w[1].error, -ENOENT);
        ck_assert_int_eq(w[1].fd, -EBADF);
        ck_assert_int_eq(w[2].error, 0);
        fds[0] = w[0].fd;
        fds[1] = w[2].fd;
        check_content(fds[0], "file 1");
        check_content(fds[1], "file 2");
        ck_assert_int_eq(fcntl(fds[0], F_GETFD), FD_CLOEXEC);
        for (size_t i = 0; i < 2; i++)
                (void) close(fds[i]);

        /* One worker for all of them, which is not us. */
        n = read_done(s, pids, &different);
        ck_assert_uint_eq(n, 4);
        ck_assert_uint_eq(different, 1);
        ck_assert_int_ne(pids[0], getpid());

        /* It goes away when nothing is to do, and is waited for. */
        for (unsigned i = 0; i < 200 && kill(pids[0], 0) >= 0; i++)
                ck_assert_int_ge(sd_event_run(event, 20 * USEC_PER_MSEC), 0);
        ck_assert_int_lt(kill(pids[0], 0), 0);
        ck_assert_int_eq(do_preserve(event, s, memfd, 4), 0);
        ck_assert_uint_eq(read_done(s, pids, &different), 5);
        ck_assert_uint_eq(different, 2);
}
END_TEST

/* A worker that dies takes nothing with it. */
START_TEST(worker_dies)
{
        _cleanup_(luv_luo_session_unrefp) LuoSession *s = open_session(true);
        _cleanup_close_ int file = -EBADF;
        Waited w[2] = { WAITED_INIT, WAITED_INIT };

        if (!own_cgroup)
                return;
        ck_assert_int_eq(luv_luo_session_set_cgroup(s, own_cgroup), 0);
        ck_assert_int_eq(luv_luo_session_retrieve_fd(s, TOKEN_DIE, TEST_DEADLINE, waited_fd, &w[0], NULL),
                         0);
        ck_assert_int_eq(luv_luo_session_retrieve_fd(s, 1, TEST_DEADLINE, waited_fd, &w[1], NULL), 0);
        ck_assert_int_eq(wait_for(event, &w[0]), -EPIPE);
        ck_assert_int_eq(wait_for(event, &w[1]), 0);
        file = w[1].fd;
        check_content(file, "file 1");
        ck_assert_int_eq(do_retrieve(event, s, TOKEN_NONSENSE), -EPROTO);
        ck_assert_int_eq(do_retrieve(event, s, TOKEN_NO_FD), -EPROTO);

        /* Nor does one that cannot be started. */
        fake.worker = "/nonexistent/worker";
        ck_assert_int_eq(do_finish(event, s), -ENOENT);
        fake.worker = "/bin/false";
        ck_assert_int_eq(do_finish(event, s), -EPIPE);
        fake.worker = "/proc/self/exe";
        ck_assert_int_eq(do_finish(event, s), 0);
}
END_TEST

START_TEST(worker_deadlines)
{
        _cleanup_(luv_luo_session_unrefp) LuoSession *s = open_session(true), *outgoing = NULL;
        _cleanup_close_ int memfd = make_memfd("x", "x");
        Waited w[3] = { WAITED_INIT, WAITED_INIT, WAITED_INIT };
        uint64_t soon = luv_now_usec() + 50 * USEC_PER_MSEC;
        LuoCall *call;
        size_t different;
        pid_t pids[16];

        if (!own_cgroup)
                return;
        ck_assert_int_eq(luv_luo_session_set_cgroup(s, own_cgroup), 0);
        ck_assert_int_eq(luv_luo_session_retrieve_fd(s, TOKEN_SLEEP, soon, waited_fd, &w[0], &call), 0);
        ck_assert_int_eq(luv_luo_session_retrieve_fd(s, 5, soon, waited_fd, &w[1], NULL), 0);
        ck_assert_int_eq(luv_luo_session_retrieve_fd(s, 6, TEST_DEADLINE, waited_fd, &w[2], NULL), 0);
        ck_assert_int_eq(wait_for(event, &w[0]), -ETIME);
        ck_assert_int_eq(wait_for(event, &w[1]), -ETIME);
        luv_luo_call_free(call);
        /* The retrieve under way is not interrupted, and the next waits for it. */
        ck_assert_int_eq(wait_for(event, &w[2]), 0);
        check_content(w[2].fd, "file 6");
        (void) close(w[2].fd);
        ck_assert_uint_eq(read_done(s, pids, &different), 2);
        ck_assert_uint_eq(different, 1);

        /* Cancelled while it is done; the session given up meanwhile. */
        ck_assert_int_eq(luv_luo_session_retrieve_fd(s, TOKEN_SLEEP, 0, waited_fd, &w[0], &call), 0);
        settle(event);
        luv_luo_call_free(call);
        s = luv_luo_session_unref(s);
        settle(event);

        outgoing = open_session(false);
        ck_assert_int_eq(luv_luo_session_set_cgroup(outgoing, own_cgroup), 0);
        ck_assert_int_eq(luv_luo_session_preserve(outgoing, memfd, TOKEN_SLEEP, 0, waited_done, &w[0],
                                                  &call),
                         0);
        settle(event);
        luv_luo_call_free(call);
        outgoing = luv_luo_session_unref(outgoing);
        for (unsigned i = 0; i < 10; i++)
                ck_assert_int_ge(sd_event_run(event, 10 * USEC_PER_MSEC), 0);
}
END_TEST

/* The caller frees everything in the callback. */
static void free_all(int error, int fd, void *userdata)
{
        LuoSession **s = userdata;

        (void) safe_close(fd);
        *s = luv_luo_session_unref(*s);
        luo = luv_luo_unref(luo);
}

START_TEST(freed_in_callback)
{
        LuoSession *s = open_session(true);

        ck_assert_int_eq(luv_luo_session_retrieve_fd(s, 1, TEST_DEADLINE, free_all, &s, NULL), 0);
        while (luo)
                ck_assert_int_ge(sd_event_run(event, UINT64_MAX), 0);
        ck_assert_ptr_null(s);

        ck_assert_int_eq(luv_luo_new(event, LUO_BACKEND_DEVICE, -EBADF, NULL, &luo), 0);
        if (!own_cgroup)
                return;
        s = open_session(true);
        ck_assert_int_eq(luv_luo_session_set_cgroup(s, own_cgroup), 0);
        ck_assert_int_eq(luv_luo_session_retrieve_fd(s, 1, TEST_DEADLINE, free_all, &s, NULL), 0);
        while (luo)
                ck_assert_int_ge(sd_event_run(event, UINT64_MAX), 0);
        ck_assert_ptr_null(s);
}
END_TEST

/* A cgroup of our own, if we may make one. */
static char *make_cgroup(const char *name)
{
        _cleanup_close_ int parent = -EBADF;
        char *path;

        if (!own_cgroup)
                return NULL;
        parent = luv_cgroup_open(own_cgroup);
        if (parent < 0 || mkdirat(parent, name, 0755) < 0)
                return NULL;
        path = luv_strf("%s/%s", streq(own_cgroup, "/") ? "" : own_cgroup, name);
        ck_assert_ptr_nonnull(path);
        return path;
}

static void remove_cgroup(const char *name)
{
        _cleanup_close_ int parent = luv_cgroup_open(own_cgroup);

        for (unsigned i = 0; i < 200; i++) {
                if (unlinkat(parent, name, AT_REMOVEDIR) >= 0)
                        return;
                ck_assert_int_ge(sd_event_run(event, 20 * USEC_PER_MSEC), 0);
        }
        ck_abort_msg("cgroup %s cannot be removed: %s", name, strerror(errno));
}

START_TEST(cgroups)
{
        _cleanup_(luv_luo_session_unrefp) LuoSession *s = open_session(true);
        _cleanup_free_ char *path = make_cgroup("test-luo-device"), *where = NULL, *sub = NULL,
                            *chosen = NULL;
        _cleanup_close_ int cgroup_fd = -EBADF, opened = -EBADF;
        size_t different;
        pid_t pids[16];
        int fd;

        /* Not there: nothing is done, but FINISH needs none. */
        ck_assert_int_eq(luv_luo_session_set_cgroup(s, "/no-such-cgroup"), 0);
        ck_assert_int_eq(do_retrieve(event, s, 1), -ESRCH);
        ck_assert_int_eq(do_finish(event, s), 0);
        if (!path)
                return;

        ck_assert_int_eq(luv_luo_session_set_cgroup(s, path), 0);
        fd = do_retrieve(event, s, 1);
        ck_assert_int_ge(fd, 0);
        (void) close(fd);
        ck_assert_uint_eq(read_done(s, pids, &different), 2);
        ck_assert_int_eq(luv_cgroup_of_pid(pids[1], &where), 0);
        ck_assert_str_eq(where, path);

        /* In a frozen one a worker would stand still: we do it ourselves. */
        cgroup_fd = luv_cgroup_open(path);
        ck_assert_int_eq(luv_cgroup_is_frozen(path), 0);
        ck_assert_int_eq(luv_write_attribute(cgroup_fd, "cgroup.freeze", "1"), 0);
        ck_assert_int_eq(luv_cgroup_is_frozen(path), 1);
        fd = do_retrieve(event, s, 2);
        ck_assert_int_ge(fd, 0);
        (void) close(fd);
        ck_assert_uint_eq(read_done(s, pids, &different), 3);
        ck_assert_int_eq(pids[2], getpid());
        ck_assert_int_eq(do_finish(event, s), 0);
        ck_assert_int_eq(luv_write_attribute(cgroup_fd, "cgroup.freeze", "0"), 0);

        /* In a threaded one, such as a vCPU's, no process can be: the one above is taken. */
        ck_assert_int_eq(mkdirat(cgroup_fd, "vcpu", 0755), 0);
        ck_assert_int_eq(luv_write_attribute(cgroup_fd, "vcpu/cgroup.type", "threaded"), 0);
        sub = luv_strf("%s/vcpu", path);
        opened = luv_cgroup_open_for_process(sub, &chosen);
        ck_assert_int_ge(opened, 0);
        ck_assert_str_eq(chosen, path);
        ck_assert_int_eq(luv_luo_session_set_cgroup(s, sub), 0);
        fd = do_retrieve(event, s, 3);
        ck_assert_int_ge(fd, 0);
        (void) close(fd);
        ck_assert_uint_eq(read_done(s, pids, &different), 5);
        free(where);
        where = NULL;
        ck_assert_int_eq(luv_cgroup_of_pid(pids[4], &where), 0);
        ck_assert_str_eq(where, path);
        ck_assert_int_eq(unlinkat(cgroup_fd, "vcpu", AT_REMOVEDIR), 0);
        s = luv_luo_session_unref(s);
        remove_cgroup("test-luo-device");
}
END_TEST

/* Against the kernel. Files: a big one with a pattern, and small ones. */

#define REAL_SESSION "luvfio-test-1"
#define REAL_SIZE ((off_t) 32 << 20)

/* $TEST_VFIO: PCI address of a device that is vfio0 before the jump and has no driver after it. */
#define REAL_VFIO_TOKEN UINT64_C(65540)

static const char *kernel_path, *initrd_path, *vfio_address;
static char *real_cgroup;

static uint64_t pattern(size_t i)
{
        return (i + 1) * UINT64_C(0x9e3779b97f4a7c15);
}

static void real_setup(void)
{
        luv_luo_device_set_syscalls(NULL);
        ck_assert_int_ge(sd_event_new(&event), 0);
        ck_assert_int_eq(luv_luo_new(event, LUO_BACKEND_DEVICE, -EBADF, NULL, &luo), 0);
        ck_assert_int_eq(luv_cgroup_of_pid(0, &own_cgroup), 0);
        real_cgroup = make_cgroup("test-luo-device");
        vfio_address = getenv("TEST_VFIO");
}

static void preserve_vfio(LuoSession *s, int *ret_cdev, int *ret_iommufd)
{
        struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };

        *ret_cdev = open("/dev/vfio/devices/vfio0", O_RDWR | O_CLOEXEC);
        ck_assert_int_ge(*ret_cdev, 0);
        *ret_iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
        ck_assert_int_ge(*ret_iommufd, 0);
        /* Not before it is bound. */
        ck_assert_int_eq(do_preserve(event, s, *ret_cdev, REAL_VFIO_TOKEN), -EINVAL);
        bind.iommufd = *ret_iommufd;
        ck_assert_int_eq(ioctl(*ret_cdev, VFIO_DEVICE_BIND_IOMMUFD, &bind), 0);
        ck_assert_int_eq(do_preserve(event, s, *ret_iommufd, REAL_VFIO_TOKEN), -ENOENT);
        ck_assert_int_eq(do_preserve(event, s, *ret_cdev, REAL_VFIO_TOKEN), 0);
}

static void retrieve_vfio(LuoSession *s)
{
        _cleanup_free_ char *command = luv_strf("vfio-bind %s", vfio_address);
        _cleanup_close_ int cdev = -EBADF;
        FdIdentity identity;

        ck_assert_int_eq(do_retrieve(event, s, REAL_VFIO_TOKEN), -EAGAIN);
        ck_assert_int_eq(system(command), 0);
        cdev = do_retrieve(event, s, REAL_VFIO_TOKEN);
        ck_assert_msg(cdev >= 0, "%s", strerror(-cdev));
        ck_assert_int_eq(luv_fd_identify(cdev, false, &identity, NULL), 0);
        ck_assert_int_eq(identity.kind, FD_KIND_VFIO);
        ck_assert_str_eq(identity.device, vfio_address);
}

START_TEST(before)
{
        _cleanup_(luv_luo_session_unrefp) LuoSession *s = NULL, *other = NULL, *left = NULL;
        _cleanup_close_ int ram = memfd_create("ram", MFD_CLOEXEC),
                            record = luv_memfd_sealed("record", "record", 6), device = -EBADF,
                            events = eventfd(0, EFD_CLOEXEC), kernel = -EBADF, initrd = -EBADF,
                            cdev = -EBADF, iommufd = -EBADF;
        _cleanup_free_ char *cmdline = NULL, *abi = NULL, *reason = NULL;
        Waited w = WAITED_INIT;
        uint64_t *buffer;
        int r;

        ck_assert_int_eq(luv_luo_probe(luo), 0);
        if (luv_luo_read_abi(luo, &abi) >= 0)
                (void) fprintf(stderr, "%s", abi);
        ck_assert_int_eq(do_retrieve_session(event, luo, REAL_SESSION, &s), -ENOENT);

        /* One opener. */
        device = open("/dev/liveupdate", O_RDWR | O_CLOEXEC);
        ck_assert_int_ge(device, 0);
        ck_assert_int_eq(luv_luo_probe(luo), -EBUSY);
        ck_assert_int_eq(luv_luo_session_create(luo, REAL_SESSION, luv_now_usec() + 100 * USEC_PER_MSEC,
                                                waited_session, &w, NULL),
                         0);
        ck_assert_int_eq(wait_for(event, &w), -ETIME);
        device = safe_close(device);

        ck_assert_int_eq(do_create(event, luo, REAL_SESSION, &s), 0);
        ck_assert_int_eq(do_create(event, luo, REAL_SESSION, &other), -EEXIST);
        ck_assert_int_eq(do_create(event, luo, "luvfio-test-2", &other), 0);
        ck_assert_int_eq(ftruncate(ram, REAL_SIZE), 0);
        buffer = mmap(NULL, (size_t) REAL_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, ram, 0);
        ck_assert_ptr_ne(buffer, MAP_FAILED);
        for (size_t i = 0; i < (size_t) REAL_SIZE / 8; i++)
                buffer[i] = pattern(i);

        ck_assert_int_eq(luv_luo_session_set_cgroup(s, real_cgroup), 0);
        ck_assert_int_eq(do_preserve(event, s, record, 65536), 0);
        ck_assert_int_eq(do_preserve(event, s, ram, 65537), 0);
        ck_assert_int_eq(do_preserve(event, s, ram, 65538), -EBUSY);
        ck_assert_int_eq(do_preserve(event, other, ram, 1), -EBUSY);
        ck_assert_int_eq(do_preserve(event, s, events, 65538), -ENOENT);
        left = luv_luo_session_ref(other);
        _cleanup_close_ int second = make_memfd("second", "second"), third = make_memfd("third", "third");
        ck_assert_int_eq(do_preserve(event, s, second, 65537), -EEXIST);
        ck_assert_int_eq(do_preserve(event, s, second, 65538), 0);
        ck_assert_int_eq(do_preserve(event, other, third, 1), 0);
        ck_assert_int_eq(do_finish(event, s), -EINVAL);
        ck_assert_int_eq(do_retrieve(event, s, 65537), -EINVAL);
        if (vfio_address)
                preserve_vfio(s, &cdev, &iommufd);

        /* Given up: it can be made again at once, since nobody else has its fd. */
        left = luv_luo_session_unref(left);
        other = luv_luo_session_unref(other);
        ck_assert_int_eq(do_create(event, luo, "luvfio-test-2", &other), 0);
        ck_assert_int_eq(do_preserve(event, other, third, 1), 0);

        kernel = open(kernel_path, O_RDONLY | O_CLOEXEC);
        ck_assert_int_ge(kernel, 0);
        if (initrd_path) {
                initrd = open(initrd_path, O_RDONLY | O_CLOEXEC);
                ck_assert_int_ge(initrd, 0);
        }
        ck_assert_int_eq(luv_kexec_running_cmdline(&cmdline), 0);
        r = luv_kexec_check_cmdline(cmdline, &reason);
        ck_assert_msg(r == 0, "%s", strempty(reason));
        ck_assert_int_eq(luv_kexec_unload(), 0);
        ck_assert_int_eq(luv_kexec_loaded(), 0);
        ck_assert_int_eq(luv_luo_jump(luo, NULL, NULL, NULL, 0), -EINVAL);
        ck_assert_int_eq(luv_kexec_load(kernel, initrd, cmdline), 0);
        ck_assert_int_eq(luv_kexec_loaded(), 1);
        ck_assert_int_eq(luv_kexec_unload(), 0);
        ck_assert_int_eq(luv_kexec_loaded(), 0);
        ck_assert_int_eq(luv_kexec_load(kernel, initrd, cmdline), 0);
        (void) fprintf(stderr, "jump\n");
        sync();
        ck_abort_msg("came back from the jump: %s", strerror(-luv_luo_jump(luo, NULL, NULL, NULL, 0)));
}
END_TEST

static void check_pattern(int fd)
{
        struct stat st;
        uint64_t *buffer;
        size_t good = 0;

        ck_assert_int_eq(fstat(fd, &st), 0);
        ck_assert_int_eq(st.st_size, REAL_SIZE);
        buffer = mmap(NULL, (size_t) REAL_SIZE, PROT_READ, MAP_SHARED, fd, 0);
        ck_assert_ptr_ne(buffer, MAP_FAILED);
        /* Check notes every assertion in a file: not for each of four million words. */
        while (good < (size_t) REAL_SIZE / 8 && buffer[good] == pattern(good))
                good++;
        ck_assert_uint_eq(good, (size_t) REAL_SIZE / 8);
        ck_assert_int_eq(munmap(buffer, (size_t) REAL_SIZE), 0);
}

START_TEST(after)
{
        _cleanup_(luv_luo_session_unrefp) LuoSession *s = NULL, *other = NULL;
        _cleanup_close_ int ram = -EBADF, again = -EBADF, record = -EBADF, copy = -EBADF;
        int r = 0;
        pid_t pid;

        ck_assert_int_eq(luv_kexec_loaded(), 0);
        ck_assert_int_eq(do_retrieve_session(event, luo, "luvfio-none-1", &s), -ENOENT);
        ck_assert_int_eq(do_retrieve_session(event, luo, REAL_SESSION, &s), 0);
        ck_assert_int_eq(do_retrieve_session(event, luo, REAL_SESSION, &other), -EINVAL);
        record = do_retrieve(event, s, 65536);
        ck_assert_int_ge(record, 0);
        check_content(record, "record");
        ck_assert_int_eq(do_retrieve(event, s, 1), -ENOENT);
        ck_assert_int_eq(do_preserve(event, s, record, 9), -EINVAL);

        ck_assert_int_eq(luv_luo_session_set_cgroup(s, real_cgroup), 0);
        ram = do_retrieve(event, s, 65537);
        ck_assert_int_ge(ram, 0);
        check_pattern(ram);

        /* Whoever has it is killed, between retrieve and finish: it is put back, and nothing lost. */
        copy = fcntl(luv_luo_session_get_fd(s), F_DUPFD_CLOEXEC, 3);
        s = luv_luo_session_unref(s);
        pid = fork();
        if (pid == 0)
                for (;;)
                        (void) pause();
        ck_assert_int_ge(pid, 0);
        copy = safe_close(copy);
        ram = safe_close(ram);
        record = safe_close(record);
        ck_assert_int_eq(do_retrieve_session(event, luo, REAL_SESSION, &s), -EINVAL);
        ck_assert_int_eq(kill(pid, SIGKILL), 0);
        ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
        for (unsigned i = 0; i < 100 && !s; i++)
                if (do_retrieve_session(event, luo, REAL_SESSION, &s) < 0)
                        (void) sd_event_run(event, 20 * USEC_PER_MSEC);
        ck_assert_ptr_nonnull(s);
        ck_assert_int_eq(luv_luo_session_set_cgroup(s, real_cgroup), 0);
        ram = do_retrieve(event, s, 65537);
        ck_assert_int_ge(ram, 0);
        check_pattern(ram);
        again = do_retrieve(event, s, 65537);
        ck_assert_int_ge(again, 0);
        if (vfio_address)
                retrieve_vfio(s);
        ck_assert_int_eq(do_finish(event, s), 0);
        ck_assert_int_eq(do_retrieve(event, s, 65538), -ENOENT);
        check_pattern(again);
        s = luv_luo_session_unref(s);
        /* The worker's copy of the session's fd is closed a moment later. */
        for (unsigned i = 0; i < 100; i++) {
                r = do_retrieve_session(event, luo, REAL_SESSION, &s);
                if (r == -ENOENT)
                        break;
                (void) sd_event_run(event, 20 * USEC_PER_MSEC);
        }
        ck_assert_int_eq(r, -ENOENT);

        /* The other one is as it was. And what was finished can be handed over anew. */
        ck_assert_int_eq(do_retrieve_session(event, luo, "luvfio-test-2", &other), 0);
        record = do_retrieve(event, other, 1);
        ck_assert_int_ge(record, 0);
        check_content(record, "third");
        ck_assert_int_eq(do_finish(event, other), 0);
        ck_assert_int_eq(do_create(event, luo, REAL_SESSION, &s), 0);
        ck_assert_int_eq(luv_luo_session_set_cgroup(s, real_cgroup), 0);
        ck_assert_int_eq(do_preserve(event, s, ram, 1), 0);
}
END_TEST

int main(int argc, char *argv[])
{
        Suite *suite;
        SRunner *runner;
        TCase *c;
        int failed;

        if (streq(argv[0], LUO_WORKER_NAME))
                return worker();

        suite = suite_create("luo-device");
        c = tcase_create("luo-device");
        tcase_set_timeout(c, 60);
        if (argc >= 3 && streq(argv[1], "--before")) {
                kernel_path = argv[2];
                initrd_path = argv[3];
                tcase_add_checked_fixture(c, real_setup, teardown);
                tcase_add_test(c, before);
        } else if (argc == 2 && streq(argv[1], "--after")) {
                tcase_add_checked_fixture(c, real_setup, teardown);
                tcase_add_test(c, after);
        } else {
                (void) printf("# the kernel's own LUO is not touched here: that is --before KERNEL [INITRD] "
                              "and, "
                              "after the jump, --after, in the test host\n");
                tcase_add_checked_fixture(c, setup, teardown);
                tcase_add_test(c, devices);
                tcase_add_test(c, jumps);
                tcase_add_test(c, directly);
                tcase_add_test(c, by_worker);
                tcase_add_test(c, worker_dies);
                tcase_add_test(c, worker_deadlines);
                tcase_add_test(c, freed_in_callback);
                tcase_add_test(c, cgroups);
        }
        suite_add_tcase(suite, c);
        runner = srunner_create(suite);
        srunner_set_tap(runner, "-");
        srunner_run_all(runner, CK_SILENT);
        failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
