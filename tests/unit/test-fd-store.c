/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <check.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <systemd/sd-daemon.h>

#include "luo/fd-store.h"
#include "util/io.h"
#include "util/string-util.h"
#include "util/time-util.h"

/*
 * A service manager as far as its notification socket goes: it writes down what it is told, an "FD" behind
 * what came with one, and closes the pipe of a barrier.
 */

static char folder[] = "/tmp/test-fd-store.XXXXXX";
static pid_t manager_pid;
static int log_fd = -EBADF;

static void run_manager(int socket_fd)
{
        for (;;) {
                union {
                        struct cmsghdr header;
                        uint8_t space[CMSG_SPACE(4 * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
                } control;
                char text[1024];
                struct iovec iov = { .iov_base = text, .iov_len = sizeof(text) - 8 };
                struct msghdr m = {
                        .msg_iov = &iov,
                        .msg_iovlen = 1,
                        .msg_control = &control,
                        .msg_controllen = sizeof(control),
                };
                ssize_t n = recvmsg(socket_fd, &m, MSG_CMSG_CLOEXEC);
                bool with_fd = false;

                if (n < 0)
                        _exit(EXIT_FAILURE);
                text[n] = 0;
                for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c))
                        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
                                int fd;

                                memcpy(&fd, CMSG_DATA(c), sizeof(fd));
                                (void) close(fd);
                                with_fd = true;
                        }
                if (streq(text, "BARRIER=1"))
                        continue;
                for (char *p = text; *p; p++)
                        if (*p == '\n')
                                *p = ' ';
                (void) strcat(text, with_fd ? " FD\n" : "\n");
                if (luv_write_all(log_fd, text, strlen(text)) < 0)
                        _exit(EXIT_FAILURE);
        }
}

static void setup(void)
{
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

        ck_assert_ptr_nonnull(mkdtemp(folder));
        (void) snprintf(address.sun_path, sizeof(address.sun_path), "%s/notify", folder);
        ck_assert_int_eq(bind(fd, (struct sockaddr *) &address, sizeof(address)), 0);
        ck_assert_int_eq(setenv("NOTIFY_SOCKET", address.sun_path, 1), 0);
        ck_assert_int_eq(setenv("FDSTORE", "3", 1), 0);
        log_fd = memfd_create("log", MFD_CLOEXEC);
        manager_pid = fork();
        /* No assertion in the child: Check's notes go to a file that both share. */
        if (manager_pid == 0) {
                (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
                run_manager(fd);
        }
        ck_assert_int_ge(manager_pid, 0);
        (void) close(fd);
}

static void teardown(void)
{
        _cleanup_free_ char *path = luv_strf("%s/notify", folder);

        ck_assert_int_eq(kill(manager_pid, SIGKILL), 0);
        ck_assert_int_eq(waitpid(manager_pid, NULL, 0), manager_pid);
        (void) unlink(path);
        (void) rmdir(folder);
        memcpy(folder + strlen(folder) - 6, "XXXXXX", 6);
        (void) unsetenv("NOTIFY_SOCKET");
        (void) unsetenv("FDSTORE");
        log_fd = safe_close(log_fd);
}

static void check_log(const char *expected)
{
        char text[1024] = "";

        ck_assert_int_ge(pread(log_fd, text, sizeof(text) - 1, 0), 0);
        ck_assert_str_eq(text, expected);
}

START_TEST(push_and_remove)
{
        _cleanup_(luv_fd_store_freep) FdStore *s = NULL;
        _cleanup_close_ int fd = memfd_create("x", MFD_CLOEXEC);
        char long_name[300];

        ck_assert_int_eq(luv_fd_store_new(&s), 0);
        ck_assert(luv_fd_store_available(s));
        ck_assert_int_eq(luv_fd_store_push(s, "luvfio-a-1", fd), 0);
        /* When push is back the manager has it. */
        check_log("FDSTORE=1 FDPOLL=0 FDNAME=luvfio-a-1 FD\n");
        ck_assert_int_eq(luv_fd_store_push(s, "luvfio-b-1", fd), 0);
        ck_assert_int_eq(luv_fd_store_push(s, "luvfio-c-1", fd), 0);
        ck_assert_int_eq(luv_fd_store_push(s, "luvfio-d-1", fd), -ENOSPC);
        ck_assert_int_eq(luv_fd_store_push(s, "luvfio-c-1", fd), 0);
        ck_assert_int_eq(luv_fd_store_remove(s, "luvfio-b-1"), 0);
        ck_assert_int_eq(luv_fd_store_push(s, "luvfio-d-1", fd), 0);
        check_log("FDSTORE=1 FDPOLL=0 FDNAME=luvfio-a-1 FD\nFDSTORE=1 FDPOLL=0 FDNAME=luvfio-b-1 FD\n"
                  "FDSTORE=1 FDPOLL=0 FDNAME=luvfio-c-1 FD\nFDSTORE=1 FDPOLL=0 FDNAME=luvfio-c-1 FD\n"
                  "FDSTOREREMOVE=1 FDNAME=luvfio-b-1\nFDSTORE=1 FDPOLL=0 FDNAME=luvfio-d-1 FD\n");

        ck_assert_int_eq(luv_fd_store_push(s, "a:b", fd), -EINVAL);
        ck_assert_int_eq(luv_fd_store_push(s, "", fd), -EINVAL);
        ck_assert_int_eq(luv_fd_store_push(s, "a\nb", fd), -EINVAL);
        ck_assert_int_eq(luv_fd_store_remove(s, "a b"), -EINVAL);
        memset(long_name, 'x', sizeof(long_name));
        long_name[256] = 0;
        ck_assert_int_eq(luv_fd_store_push(s, long_name, fd), -EINVAL);
        ck_assert_int_lt(luv_fd_store_push(s, "luvfio-c-1", -1), 0);
        /* What was pushed is the manager's; it cannot be had back. */
        ck_assert_int_eq(luv_fd_store_take(s, "luvfio-a-1"), -ENOENT);
}
END_TEST

START_TEST(manager_gone)
{
        _cleanup_(luv_fd_store_freep) FdStore *s = NULL;
        _cleanup_close_ int fd = memfd_create("x", MFD_CLOEXEC);

        ck_assert_int_eq(luv_fd_store_new(&s), 0);
        ck_assert_int_eq(setenv("NOTIFY_SOCKET", "/nonexistent/notify", 1), 0);
        ck_assert_int_eq(luv_fd_store_push(s, "a", fd), -ENOENT);
        ck_assert_int_eq(luv_fd_store_remove(s, "a"), -ENOENT);
}
END_TEST

START_TEST(no_manager)
{
        _cleanup_(luv_fd_store_freep) FdStore *s = NULL, *none = NULL;
        _cleanup_close_ int fd = memfd_create("x", MFD_CLOEXEC);
        _cleanup_strv_ char **names = NULL;

        ck_assert_int_eq(unsetenv("NOTIFY_SOCKET"), 0);
        ck_assert_int_eq(luv_fd_store_new(&s), 0);
        ck_assert(!luv_fd_store_available(s));
        ck_assert_int_eq(luv_fd_store_push(s, "a", fd), 0);
        ck_assert_int_eq(luv_fd_store_remove(s, "a"), 0);
        ck_assert_int_eq(luv_fd_store_names(s, "", &names), 0);
        ck_assert_ptr_null(names[0]);

        /* A manager that stores nothing. */
        ck_assert_int_eq(setenv("NOTIFY_SOCKET", "/nonexistent/notify", 1), 0);
        ck_assert_int_eq(setenv("FDSTORE", "0", 1), 0);
        ck_assert_int_eq(luv_fd_store_new(&none), 0);
        ck_assert(!luv_fd_store_available(none));
}
END_TEST

/* What the manager passes at start: here it must be at 3 and on, so another process does it. */

#define PASSED "--passed"

START_TEST(passed)
{
        _cleanup_(luv_fd_store_freep) FdStore *s = NULL;
        _cleanup_close_ int newest = -EBADF, older = -EBADF, listening = -EBADF;
        _cleanup_strv_ char **names = NULL;
        struct stat st;

        ck_assert_int_eq(luv_fd_store_new(&s), 0);
        ck_assert_int_eq(fcntl(3, F_GETFD), FD_CLOEXEC);
        ck_assert_ptr_null(getenv("LISTEN_FDS"));
        ck_assert_int_eq(luv_fd_store_names(s, "luvfio-", &names), 0);
        ck_assert_uint_eq(luv_strv_length(names), 2);
        ck_assert_str_eq(names[0], "luvfio-a-1");
        ck_assert_str_eq(names[1], "luvfio-b-1");

        listening = luv_fd_store_take(s, "org.luvfio.Host");
        ck_assert_int_eq(fstat(listening, &st), 0);
        ck_assert(S_ISSOCK(st.st_mode));
        ck_assert_int_eq(luv_fd_store_take(s, "org.luvfio.Host"), -ENOENT);
        newest = luv_fd_store_take(s, "luvfio-a-1");
        ck_assert_int_eq(fstat(newest, &st), 0);
        ck_assert_int_eq(st.st_size, 2);
        older = luv_fd_store_take(s, "luvfio-a-1");
        ck_assert_int_eq(fstat(older, &st), 0);
        ck_assert_int_eq(st.st_size, 1);
        ck_assert_int_eq(luv_fd_store_take(s, "luvfio-a-1"), -ENOENT);

        /* Three are stored, the socket does not count: there is room for one more of four. */
        ck_assert_int_eq(luv_fd_store_push(s, "luvfio-c-1", newest), 0);
        ck_assert_int_eq(luv_fd_store_push(s, "luvfio-d-1", newest), -ENOSPC);
        ck_assert_int_eq(luv_fd_store_remove(s, "luvfio-a-1"), 0);
        ck_assert_int_eq(luv_fd_store_push(s, "luvfio-d-1", newest), 0);
        ck_assert_int_eq(luv_fd_store_push(s, "luvfio-e-1", newest), 0);
        ck_assert_int_eq(luv_fd_store_push(s, "luvfio-f-1", newest), -ENOSPC);
        /* A removed one that was not taken is closed. */
        ck_assert_int_eq(luv_fd_store_remove(s, "luvfio-b-1"), 0);
        ck_assert_int_eq(luv_fd_store_take(s, "luvfio-b-1"), -ENOENT);
}
END_TEST

static void pass(void)
{
        int listening = socket(AF_UNIX, SOCK_STREAM, 0), fds[4];
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        char pid[16];

        fds[0] = listening;
        (void) bind(listening, (struct sockaddr *) &address, sizeof(sa_family_t));
        (void) listen(listening, 1);
        fds[1] = memfd_create("newest", 0);
        fds[2] = memfd_create("b", 0);
        fds[3] = memfd_create("older", 0);
        if (ftruncate(fds[1], 2) < 0 || ftruncate(fds[3], 1) < 0)
                _exit(EXIT_FAILURE);
        for (int i = 0; i < 4; i++)
                fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 100);
        for (int i = 0; i < 4; i++)
                if (dup2(fds[i], 3 + i) < 0)
                        _exit(EXIT_FAILURE);
        (void) snprintf(pid, sizeof(pid), "%i", getpid());
        (void) setenv("LISTEN_PID", pid, 1);
        (void) setenv("LISTEN_FDS", "4", 1);
        (void) setenv("LISTEN_FDNAMES", "org.luvfio.Host:luvfio-a-1:luvfio-b-1:luvfio-a-1", 1);
        (void) setenv("FDSTORE", "4", 1);
        (void) execl("/proc/self/exe", "test-fd-store", PASSED, NULL);
        _exit(EXIT_FAILURE);
}

START_TEST(at_start)
{
        pid_t pid = fork();
        int status;

        if (pid == 0)
                pass();
        ck_assert_int_ge(pid, 0);
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
        ck_assert_int_eq(status, 0);
        /* Nobody waited for the last message to be read. */
        ck_assert_int_gt(sd_notify_barrier(false, 10 * USEC_PER_SEC), 0);
        check_log("FDSTORE=1 FDPOLL=0 FDNAME=luvfio-c-1 FD\nFDSTOREREMOVE=1 FDNAME=luvfio-a-1\n"
                  "FDSTORE=1 FDPOLL=0 FDNAME=luvfio-d-1 FD\nFDSTORE=1 FDPOLL=0 FDNAME=luvfio-e-1 FD\n"
                  "FDSTOREREMOVE=1 FDNAME=luvfio-b-1\n");
}
END_TEST

int main(int argc, char *argv[])
{
        bool is_passed = argc > 1 && streq(argv[1], PASSED);
        Suite *suite = suite_create("fd-store");
        TCase *c = tcase_create("fd-store");
        SRunner *runner;
        int failed;

        if (is_passed) {
                (void) dup2(STDERR_FILENO, STDOUT_FILENO);
                tcase_add_test(c, passed);
        } else {
                tcase_add_checked_fixture(c, setup, teardown);
                tcase_add_test(c, push_and_remove);
                tcase_add_test(c, manager_gone);
                tcase_add_test(c, no_manager);
                tcase_add_test(c, at_start);
        }
        suite_add_tcase(suite, c);
        runner = srunner_create(suite);
        if (!is_passed)
                srunner_set_tap(runner, "-");
        srunner_run_all(runner, is_passed ? CK_MINIMAL : CK_SILENT);
        failed = srunner_ntests_failed(runner);
        if (failed && is_passed)
                srunner_print(runner, CK_NORMAL);
        srunner_free(runner);
        return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
