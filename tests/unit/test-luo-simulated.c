/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "luo-fixture.h"
#include "util/io.h"
#include "util/string-util.h"

#define OUTGOING "--outgoing"
#define INCOMING "--incoming"

static sd_event *event;
static char log_path[] = "/tmp/test-luo-simulated.XXXXXX";

static void setup(void)
{
        int fd = mkostemp(log_path, O_CLOEXEC);

        ck_assert_int_ge(fd, 0);
        ck_assert_int_eq(close(fd), 0);
        ck_assert_int_eq(setenv("LUVFIO_SIMULATED_LOG", log_path, 1), 0);
        ck_assert_int_ge(sd_event_new(&event), 0);
}

static void teardown(void)
{
        event = sd_event_unref(event);
        (void) unlink(log_path);
        memcpy(log_path + strlen(log_path) - 6, "XXXXXX", 6);
}

static Luo *new_luo(const char *fail)
{
        Luo *l;

        ck_assert_int_eq(luv_luo_new(event, LUO_BACKEND_SIMULATED, -EBADF, fail, &l), 0);
        return l;
}

static char *read_log(void)
{
        char *text;

        ck_assert_int_eq(luv_read_file(AT_FDCWD, log_path, 1024 * 1024, &text, NULL), 0);
        return text;
}

START_TEST(create)
{
        _cleanup_(luv_luo_unrefp) Luo *l = new_luo(NULL);
        _cleanup_(luv_luo_session_unrefp) LuoSession *a = NULL, *b = NULL, *other = NULL;

        ck_assert_str_eq(luv_luo_backend_to_string(luv_luo_get_backend(l)), "simulated");
        ck_assert_int_eq(luv_luo_probe(l), 0);
        ck_assert_int_eq(do_create(event, l, "luvfio-a-1", &a), 0);
        ck_assert_str_eq(luv_luo_session_get_name(a), "luvfio-a-1");
        ck_assert_int_eq(do_create(event, l, "luvfio-a-1", &other), -EEXIST);
        ck_assert_int_eq(do_create(event, l, "luvfio-b-1", &b), 0);
        ck_assert_int_eq(do_retrieve_session(event, l, "luvfio-a-1", &other), -ENOENT);

        /* As LUO: to the last of 63 bytes, and no more. */
        ck_assert_int_eq(luv_luo_session_create(l, "", 0, waited_session, NULL, NULL), -EINVAL);
        ck_assert_int_eq(luv_luo_session_create(l, "a b", 0, waited_session, NULL, NULL), -EINVAL);
        ck_assert_int_eq(luv_luo_session_create(
                                         l,
                                         "0123456789012345678901234567890123456789012345678901234567890123",
                                         0, waited_session, NULL, NULL),
                         -EINVAL);
        ck_assert_int_eq(do_create(event, l,
                                   "012345678901234567890123456789012345678901234567890123456789012",
                                   &other),
                         0);
}
END_TEST

START_TEST(last_close)
{
        _cleanup_(luv_luo_unrefp) Luo *l = new_luo(NULL);
        _cleanup_close_ int copy = -EBADF, memfd = make_memfd("ram", "content");
        _cleanup_free_ char *log = NULL;
        LuoSession *s;

        ck_assert_int_eq(do_create(event, l, "luvfio-a-1", &s), 0);
        ck_assert_int_eq(do_preserve(event, s, memfd, 1), 0);
        copy = fcntl(luv_luo_session_get_fd(s), F_DUPFD_CLOEXEC, 3);
        luv_luo_session_unref(s);

        /* Somebody else has a copy, as PID 1 would. */
        ck_assert_int_eq(do_create(event, l, "luvfio-a-1", &s), -EEXIST);
        ck_assert_int_eq(luv_luo_session_adopt(l, "luvfio-b-1", copy, false, &s), -EINVAL);
        ck_assert_int_eq(luv_luo_session_adopt(l, "luvfio-a-1", memfd, false, &s), -EINVAL);
        ck_assert_int_eq(luv_luo_session_adopt(l, "luvfio-a-1", copy, true, &s), -EINVAL);
        ck_assert_int_eq(luv_luo_session_adopt(l, "luvfio-a-1", copy, false, &s), 0);
        TAKE_FD(copy);
        ck_assert_int_eq(do_preserve(event, s, memfd, 2), -EBUSY);
        luv_luo_session_unref(s);

        ck_assert_int_eq(do_create(event, l, "luvfio-a-1", &s), 0);
        ck_assert_int_eq(do_preserve(event, s, memfd, 1), 0);
        luv_luo_session_unref(s);
        settle(event);
        log = read_log();
        ck_assert_str_eq(log, "create luvfio-a-1\npreserve luvfio-a-1 1\nunpreserve luvfio-a-1 1\n"
                              "close luvfio-a-1\ncreate luvfio-a-1\npreserve luvfio-a-1 1\n"
                              "unpreserve luvfio-a-1 1\nclose luvfio-a-1\n");
}
END_TEST

START_TEST(preserve)
{
        _cleanup_(luv_luo_unrefp) Luo *l = new_luo(NULL);
        _cleanup_(luv_luo_session_unrefp) LuoSession *a = NULL, *b = NULL;
        _cleanup_close_ int ram = make_memfd("ram", "x"), other = make_memfd("other", "y"),
                            copy = fcntl(ram, F_DUPFD_CLOEXEC, 3),
                            vfio = make_memfd("luvfio-sim:vfio:0000:00:04.0", ""),
                            iommufd = make_memfd("luvfio-sim:iommufd", ""),
                            kept = make_memfd("luvfio-sim:iommufd+preserved", ""),
                            events = eventfd(0, EFD_CLOEXEC);

        ck_assert_int_eq(do_create(event, l, "luvfio-a-1", &a), 0);
        ck_assert_int_eq(do_create(event, l, "luvfio-b-1", &b), 0);
        ck_assert_int_eq(do_preserve(event, a, ram, 1), 0);
        ck_assert_int_eq(do_preserve(event, a, other, 1), -EEXIST);
        ck_assert_int_eq(do_preserve(event, a, ram, 2), -EBUSY);
        ck_assert_int_eq(do_preserve(event, b, copy, 1), -EBUSY);
        ck_assert_int_eq(do_preserve(event, b, other, 1), 0);
        ck_assert_int_eq(do_preserve(event, b, vfio, 2), 0);
        /* No file handler in this kernel, or in none. */
        ck_assert_int_eq(do_preserve(event, b, iommufd, 3), -ENOENT);
        ck_assert_int_eq(do_preserve(event, b, kept, 4), 0);
        ck_assert_int_eq(do_preserve(event, b, events, 3), -ENOENT);
        ck_assert_int_eq(luv_luo_session_preserve(b, -1, 3, 0, waited_done, NULL, NULL), -EBADF);
        /* Of an outgoing session. */
        ck_assert_int_eq(do_retrieve(event, a, 1), -EINVAL);
        ck_assert_int_eq(do_finish(event, a), -EINVAL);
}
END_TEST

START_TEST(order_and_cancelling)
{
        _cleanup_(luv_luo_unrefp) Luo *l = new_luo(NULL);
        _cleanup_(luv_luo_session_unrefp) LuoSession *s = NULL;
        int fds[8];
        _cleanup_free_ char *log = NULL;
        Waited w[8];
        LuoCall *calls[8], *opening;

        ck_assert_int_eq(do_create(event, l, "s", &s), 0);
        for (size_t i = 0; i < ELEMENTSOF(fds); i++) {
                w[i] = (Waited) WAITED_INIT;
                fds[i] = make_memfd("ram", "x");
                ck_assert_int_eq(luv_luo_session_preserve(s, fds[i], i, TEST_DEADLINE, waited_done, &w[i],
                                                          &calls[i]),
                                 0);
        }
        /* From the middle, the end and the beginning. */
        calls[3] = luv_luo_call_free(calls[3]);
        calls[7] = luv_luo_call_free(calls[7]);
        calls[0] = luv_luo_call_free(calls[0]);
        ck_assert_int_eq(wait_for(event, &w[6]), 0);
        settle(event);
        for (size_t i = 0; i < ELEMENTSOF(fds); i++) {
                ck_assert(w[i].over == (i != 0 && i != 3 && i != 7));
                luv_luo_call_free(calls[i]);
        }
        for (size_t i = 0; i < ELEMENTSOF(fds); i++)
                (void) close(fds[i]);

        /* A cancelled open leaves no session. */
        ck_assert_int_eq(luv_luo_session_create(l, "t", 0, waited_session, NULL, &opening), 0);
        luv_luo_call_free(opening);
        settle(event);
        log = read_log();
        ck_assert_str_eq(log,
                         "create s\npreserve s 1\npreserve s 2\npreserve s 4\npreserve s 5\npreserve s 6\n");

        /* What is left of calls when everything goes is not called back. */
        ck_assert_int_eq(luv_luo_session_create(l, "t", 0, waited_session, NULL, &opening), 0);
        ck_assert_int_eq(luv_luo_session_create(l, "u", 0, waited_session, NULL, NULL), 0);
        s = luv_luo_session_unref(s);
        l = luv_luo_unref(l);
        luv_luo_call_free(opening);
}
END_TEST

START_TEST(deadlines)
{
        _cleanup_(luv_luo_unrefp) Luo *l =
                        new_luo("create:1:EBUSY,create:2:EBUSY,create:4:EBUSY,create:5:EBUSY,"
                                "create:6:EBUSY,create:7:EBUSY,create:8:EBUSY,create:9:EBUSY,"
                                "create:10:EBUSY,create:11:EBUSY,create:12:EBUSY");
        _cleanup_(luv_luo_session_unrefp) LuoSession *s = NULL;
        _cleanup_close_ int fd = make_memfd("ram", "x");
        Waited w = WAITED_INIT, x = WAITED_INIT;
        uint64_t begin;

        /* Somebody has the device for a moment. */
        ck_assert_int_eq(do_create(event, l, "s", &s), 0);

        begin = luv_now_usec();
        ck_assert_int_eq(luv_luo_session_create(l, "t", begin + 40 * USEC_PER_MSEC, waited_session, &w,
                                                NULL),
                         0);
        ck_assert_int_eq(wait_for(event, &w), -ETIME);
        ck_assert_uint_ge(luv_now_usec() - begin, 40 * USEC_PER_MSEC);
        ck_assert_ptr_null(w.session);

        ck_assert_int_eq(luv_luo_session_preserve(s, fd, 1, 1, waited_done, &x, NULL), 0);
        ck_assert(!x.over);
        ck_assert_int_eq(wait_for(event, &x), -ETIME);
        ck_assert_int_eq(do_preserve(event, s, fd, 1), 0);
}
END_TEST

START_TEST(fault_specs)
{
        static const char *const wrong[] = {
                "",          "create",         "create:",    "create:x",      "create:0",
                "nothing:1", "create:1:EWHAT", "create:1:0", "create:1:5000", "create:1,",
                ":1",        "create:+",       "create:0+",  "create:1++"
        };
        _cleanup_(luv_luo_unrefp) Luo *l = NULL;
        Luo *none = NULL;

        for (size_t i = 0; i < ELEMENTSOF(wrong); i++) {
                ck_assert_msg(luv_luo_new(event, LUO_BACKEND_SIMULATED, -EBADF, wrong[i], &none) == -EINVAL,
                              "%s", wrong[i]);
                ck_assert_ptr_null(none);
        }
        l = new_luo("probe:2:ENOENT,probe:4+,create:1,create:3:13");
        ck_assert_int_eq(luv_luo_probe(l), 0);
        ck_assert_int_eq(luv_luo_probe(l), -ENOENT);
        ck_assert_int_eq(luv_luo_probe(l), 0);
        for (size_t i = 0; i < 3; i++)
                ck_assert_int_eq(luv_luo_probe(l), -EIO);
        for (size_t i = 0; i < 3; i++) {
                _cleanup_(luv_luo_session_unrefp) LuoSession *s = NULL;

                ck_assert_int_eq(do_create(event, l, "s", &s), i == 0 ? -EIO : i == 1 ? 0 : -EACCES);
        }
        ck_assert_int_eq(setenv("LUVFIO_SIMULATED_LOG", "/nonexistent/log", 1), 0);
        ck_assert_int_eq(luv_luo_new(event, LUO_BACKEND_SIMULATED, -EBADF, NULL, &none), -ENOENT);
}
END_TEST

/* A state that is none is refused, and its fd closed. */
START_TEST(damaged_state)
{
        static const char *const wrong[] = {
                "",
                "{}",
                "[]",
                "{\"sessions\":[],\"counters\":[]}",
                "{\"sessions\":[{\"name\":\"a\"}],\"counters\":{}}",
                "{\"sessions\":[{\"name\":\"a\",\"files\":[{\"token\":1,\"fd\":1}]}],\"counters\":{}}",
                "{\"sessions\":[{\"name\":\"a\",\"files\":[{\"token\":1,\"fd\":12345}]}],\"counters\":{}}",
                "{\"sessions\":[{\"name\":\"a\",\"files\":[{\"token\":-1,\"fd\":3}]}],\"counters\":{}}",
        };

        for (size_t i = 0; i < ELEMENTSOF(wrong); i++) {
                int fd = make_memfd("state", wrong[i]);
                Luo *l = NULL;

                ck_assert_msg(luv_luo_new(event, LUO_BACKEND_SIMULATED, fd, NULL, &l) < 0, "%s", wrong[i]);
                ck_assert_int_lt(fcntl(fd, F_GETFD), 0);
        }
        ck_assert_int_eq(unsetenv(LUVFIO_HANDED_ENV), 0);
        ck_assert_int_eq(luv_luo_handed_fd(), -ENOENT);
        ck_assert_int_eq(setenv(LUVFIO_HANDED_ENV, "x", 1), 0);
        ck_assert_int_eq(luv_luo_handed_fd(), -EINVAL);
        ck_assert_int_eq(setenv(LUVFIO_HANDED_ENV, "12345", 1), 0);
        ck_assert_int_eq(luv_luo_handed_fd(), -EBADF);
}
END_TEST

/* Freezing fails: nothing is frozen, and everything goes on. */
START_TEST(jump_refused)
{
        _cleanup_(luv_luo_unrefp) Luo *l = new_luo("freeze:2:EBUSY");
        _cleanup_(luv_luo_session_unrefp) LuoSession *a = NULL, *b = NULL;
        _cleanup_close_ int one = make_memfd("one", "1"), two = make_memfd("two", "2"),
                            three = make_memfd("3", "3");
        char *argv[] = { (char *) "test", NULL };

        ck_assert_int_eq(do_create(event, l, "a", &a), 0);
        ck_assert_int_eq(do_create(event, l, "b", &b), 0);
        ck_assert_int_eq(do_preserve(event, a, one, 1), 0);
        ck_assert_int_eq(do_preserve(event, b, two, 1), 0);
        ck_assert_int_eq(luv_luo_jump(l, argv, NULL, NULL, 0), -EBUSY);
        ck_assert_int_eq(do_preserve(event, b, three, 2), 0);
}
END_TEST

/* A name that cannot be passed on stops the jump late: all fds are as before. */
START_TEST(jump_fails_late)
{
        _cleanup_(luv_luo_unrefp) Luo *l = new_luo(NULL);
        _cleanup_(luv_luo_session_unrefp) LuoSession *a = NULL;
        _cleanup_close_ int one = make_memfd("one", "1"), two = make_memfd("two", "2");
        char *argv[] = { (char *) "test", NULL }, *names[] = { (char *) "a:b", (char *) "c" };
        struct stat before[16], after[16];
        int kept[] = { one, two };

        ck_assert_int_eq(do_create(event, l, "a", &a), 0);
        ck_assert_int_eq(do_preserve(event, a, one, 1), 0);
        for (int i = 0; i < 16; i++)
                if (fstat(i, &before[i]) < 0)
                        before[i].st_ino = 0;
        ck_assert_int_eq(luv_luo_jump(l, argv, kept, names, 2), -EINVAL);
        for (int i = 0; i < 16; i++) {
                if (fstat(i, &after[i]) < 0)
                        after[i].st_ino = 0;
                /* The simulation may have moved files of its own. */
                if (before[i].st_ino && after[i].st_ino)
                        ck_assert_uint_eq(before[i].st_ino, after[i].st_ino);
        }
        ck_assert_ptr_null(getenv("LISTEN_FDS"));
        ck_assert_ptr_null(getenv(LUVFIO_HANDED_ENV));
        ck_assert_int_eq(do_preserve(event, a, two, 2), 0);
}
END_TEST

/* The two sides, run by exec as a program of its own each. */

START_TEST(outgoing)
{
        char *argv[] = { (char *) "test-luo-simulated", (char *) INCOMING, NULL };
        char *names[] = { (char *) "first", (char *) "second" };
        LuoSession *a, *b;
        int kept[2], pair[2];
        Luo *l = new_luo(NULL);

        ck_assert_int_eq(pipe2(pair, O_CLOEXEC), 0);
        kept[0] = pair[0];
        kept[1] = make_memfd("kept", "kept");
        ck_assert_int_eq(do_create(event, l, "a", &a), 0);
        ck_assert_int_eq(do_create(event, l, "b", &b), 0);
        ck_assert_int_eq(do_preserve(event, a, make_memfd("one", "one"), 1), 0);
        ck_assert_int_eq(do_preserve(event, a, make_memfd("two", "two"), 2), 0);
        ck_assert_int_eq(do_preserve(event, a, make_memfd("three", "three"), 3), 0);
        ck_abort_msg("came back from the jump: %s", strerror(-luv_luo_jump(l, argv, kept, names, 2)));
}
END_TEST

START_TEST(incoming)
{
        _cleanup_(luv_luo_session_unrefp) LuoSession *a = NULL, *b = NULL, *other = NULL;
        _cleanup_(luv_luo_unrefp) Luo *l = NULL;
        _cleanup_close_ int fd = -EBADF, again = -EBADF;
        const char *names = getenv("LISTEN_FDNAMES"), *pid = getenv("LISTEN_PID");
        char expected[16];
        struct stat st;
        int copy;

        (void) snprintf(expected, sizeof(expected), "%i", getpid());
        ck_assert_str_eq(pid, expected);
        ck_assert_str_eq(names, "first:second");
        ck_assert_str_eq(getenv("LISTEN_FDS"), "2");
        ck_assert_int_eq(fstat(3, &st), 0);
        ck_assert(S_ISFIFO(st.st_mode));
        check_content(4, "kept");

        ck_assert_int_eq(luv_luo_new(event, LUO_BACKEND_SIMULATED, luv_luo_handed_fd(),
                                     "retrieve:2:EAGAIN,retrieve:4:ENOMEM,finish:1:EBUSY,preserve:4", &l),
                         0);
        ck_assert_ptr_null(getenv(LUVFIO_HANDED_ENV));

        ck_assert_int_eq(do_retrieve_session(event, l, "none", &other), -ENOENT);
        ck_assert_int_eq(do_retrieve_session(event, l, "a", &a), 0);
        ck_assert_int_eq(do_retrieve_session(event, l, "a", &other), -EINVAL);
        /* Incoming and outgoing names do not meet. */
        ck_assert_int_eq(do_create(event, l, "a", &other), 0);
        other = luv_luo_session_unref(other);
        settle(event);

        fd = do_retrieve(event, a, 1);
        ck_assert_int_ge(fd, 0);
        check_content(fd, "one");
        /* What is not there yet can be tried again; what failed fails for ever. */
        ck_assert_int_eq(do_retrieve(event, a, 2), -EAGAIN);
        again = do_retrieve(event, a, 2);
        ck_assert_int_ge(again, 0);
        check_content(again, "two");
        ck_assert_int_eq(do_retrieve(event, a, 3), -ENOMEM);
        ck_assert_int_eq(do_retrieve(event, a, 3), -ENOMEM);
        ck_assert_int_eq(do_retrieve(event, a, 4), -ENOENT);
        ck_assert_int_eq(do_preserve(event, a, fd, 9), -EINVAL);

        /* Closed unfinished, it is put back. */
        copy = fcntl(luv_luo_session_get_fd(a), F_DUPFD_CLOEXEC, 3);
        a = luv_luo_session_unref(a);
        ck_assert_int_eq(do_retrieve_session(event, l, "a", &a), -EINVAL);
        (void) close(copy);
        ck_assert_int_eq(do_retrieve_session(event, l, "a", &a), 0);
        ck_assert_int_eq(do_retrieve(event, a, 3), -ENOMEM);

        /* Nothing is done by a FINISH that fails. Forwarding: only after it, in a new session. */
        ck_assert_int_eq(do_finish(event, a), -EBUSY);
        ck_assert_int_eq(do_finish(event, a), 0);
        ck_assert_int_eq(do_finish(event, a), 0);
        ck_assert_int_eq(do_retrieve(event, a, 1), -ENOENT);
        a = luv_luo_session_unref(a);
        ck_assert_int_eq(do_retrieve_session(event, l, "a", &a), -ENOENT);

        /* Three were preserved before the jump: the count goes on. */
        ck_assert_int_eq(do_create(event, l, "c", &other), 0);
        ck_assert_int_eq(do_preserve(event, other, fd, 1), -EIO);
        ck_assert_int_eq(do_preserve(event, other, fd, 1), 0);

        ck_assert_int_eq(do_retrieve_session(event, l, "b", &b), 0);
        b = luv_luo_session_unref(b);
        settle(event);
        other = luv_luo_session_unref(other);
        settle(event);
}
END_TEST

START_TEST(jump)
{
        static const char *const expected =
                        "create a\ncreate b\npreserve a 1\npreserve a 2\npreserve a 3\n"
                        "freeze a 1\nfreeze a 2\nfreeze a 3\njump\nretrieve-session a\ncreate a\n"
                        "close a\nretrieve a 1\nfault retrieve 2 EAGAIN\nretrieve a 2\n"
                        "fault retrieve 4 ENOMEM\nput-back a\nretrieve-session a\n"
                        "fault finish 1 EBUSY\nfinish a 3\nfinish a 2\nfinish a 1\nclose a\n"
                        "create c\nfault preserve 4 EIO\npreserve c 1\nretrieve-session b\n"
                        "put-back b\nunpreserve c 1\nclose c\n";
        _cleanup_free_ char *log = NULL;
        pid_t pid;
        int status;

        pid = fork();
        if (pid == 0) {
                (void) execl("/proc/self/exe", "test-luo-simulated", OUTGOING, NULL);
                _exit(EXIT_FAILURE);
        }
        ck_assert_int_ge(pid, 0);
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
        ck_assert_int_eq(status, 0);
        log = read_log();
        ck_assert_str_eq(log, expected);
}
END_TEST

/* More sessions and files than there are elsewhere here; what they cost, test-scale.py measures. */
START_TEST(many)
{
        _cleanup_(luv_luo_unrefp) Luo *l = NULL;
        LuoSession *sessions[200];
        char name[32];

        (void) unsetenv("LUVFIO_SIMULATED_LOG");
        l = new_luo(NULL);
        for (size_t i = 0; i < ELEMENTSOF(sessions); i++) {
                (void) snprintf(name, sizeof(name), "luvfio-m%zu-1", i);
                ck_assert_int_eq(do_create(event, l, name, &sessions[i]), 0);
                for (unsigned token = 0; token < 4; token++) {
                        int fd = make_memfd("ram", "");

                        ck_assert_int_eq(do_preserve(event, sessions[i], fd, token), 0);
                        (void) close(fd);
                }
        }
        for (size_t i = 0; i < ELEMENTSOF(sessions); i++)
                luv_luo_session_unref(sessions[i]);
        settle(event);
}
END_TEST

/* One side of the jump: quiet, and told by the exit code. */
static int run_side(const TTest *side)
{
        Suite *suite = suite_create("side");
        TCase *c = tcase_create("side");
        SRunner *runner;
        int failed;

        (void) dup2(STDERR_FILENO, STDOUT_FILENO);
        if (sd_event_new(&event) < 0)
                return EXIT_FAILURE;
        tcase_add_test(c, side);
        suite_add_tcase(suite, c);
        runner = srunner_create(suite);
        srunner_run_all(runner, CK_MINIMAL);
        failed = srunner_ntests_failed(runner);
        if (failed)
                srunner_print(runner, CK_NORMAL);
        srunner_free(runner);
        event = sd_event_unref(event);
        return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

int main(int argc, char *argv[])
{
        SRunner *runner;
        Suite *suite;
        TCase *c;
        int failed;

        if (argc > 1 && streq(argv[1], INCOMING))
                return run_side(incoming);
        if (argc > 1 && streq(argv[1], OUTGOING))
                return run_side(outgoing);

        suite = suite_create("luo-simulated");
        c = tcase_create("luo-simulated");

        tcase_add_checked_fixture(c, setup, teardown);
        tcase_add_test(c, create);
        tcase_add_test(c, last_close);
        tcase_add_test(c, preserve);
        tcase_add_test(c, order_and_cancelling);
        tcase_add_test(c, deadlines);
        tcase_add_test(c, fault_specs);
        tcase_add_test(c, damaged_state);
        tcase_add_test(c, jump_refused);
        tcase_add_test(c, jump_fails_late);
        tcase_add_test(c, jump);
        tcase_add_test(c, many);
        suite_add_tcase(suite, c);
        runner = srunner_create(suite);
        srunner_set_tap(runner, "-");
        srunner_run_all(runner, CK_SILENT);
        failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
