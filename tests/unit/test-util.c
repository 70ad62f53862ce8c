/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <check.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "util/cgroup.h"
#include "util/crc32c.h"
#include "util/io.h"
#include "util/json-util.h"
#include "util/log.h"
#include "util/string-util.h"
#include "util/time-util.h"

START_TEST(crc32c)
{
        uint8_t zeros[32] = {};

        ck_assert_uint_eq(luv_crc32c("", 0), 0);
        ck_assert_uint_eq(luv_crc32c("123456789", 9), 0xe3069283);
        ck_assert_uint_eq(luv_crc32c(zeros, sizeof(zeros)), 0x8a9136aa);
        ck_assert_uint_eq(luv_crc32c_extend(luv_crc32c("1234", 4), "56789", 5), 0xe3069283);
}
END_TEST

START_TEST(reading)
{
        char template[] = "/tmp/test-util.XXXXXX", buffer[8];
        _cleanup_close_ int fd = mkostemp(template, O_CLOEXEC);
        _cleanup_free_ char *all = NULL, *line = NULL;
        char *none = NULL;
        size_t size;

        ck_assert_int_ge(fd, 0);
        ck_assert_int_eq(luv_write_all(fd, "hello\n", 6), 0);
        ck_assert_int_eq(luv_read_file(AT_FDCWD, template, 6, &all, &size), 0);
        ck_assert_uint_eq(size, 6);
        ck_assert_str_eq(all, "hello\n");
        ck_assert_int_eq(luv_read_file(AT_FDCWD, template, 5, &none, &size), -EFBIG);
        ck_assert_int_eq(luv_read_file(AT_FDCWD, template, 0, &none, &size), -EFBIG);
        ck_assert_int_eq(luv_read_line_file(AT_FDCWD, template, &line), 0);
        ck_assert_str_eq(line, "hello");
        ck_assert_int_eq(luv_pread_all(fd, buffer, 4, 1), 0);
        ck_assert_mem_eq(buffer, "ello", 4);
        ck_assert_int_eq(luv_pread_all(fd, buffer, 4, 3), -ENODATA);
        ck_assert_int_eq(luv_pread_all(-1, buffer, 4, 0), -EBADF);
        ck_assert_int_eq(luv_read_fd(-1, 10, &none, NULL), -EBADF);
        ck_assert_int_eq(luv_read_file(AT_FDCWD, "/nonexistent", 6, &none, NULL), -ENOENT);
        ck_assert_int_eq(luv_write_all(-1, "x", 1), -EBADF);
        ck_assert_int_eq(luv_write_attribute(AT_FDCWD, "/nonexistent/x", "1"), -ENOENT);
        ck_assert_int_eq(luv_write_attribute(AT_FDCWD, "/dev/full", "1"), -ENOSPC);
        ck_assert_int_eq(luv_write_attribute(AT_FDCWD, template, "1"), 0);
        ck_assert_ptr_null(none);
        ck_assert_int_eq(unlink(template), 0);
}
END_TEST

START_TEST(atomic_files)
{
        char folder[] = "/tmp/test-util.XXXXXX";
        _cleanup_close_ int dir_fd = -EBADF;
        _cleanup_free_ char *text = NULL;
        struct stat st;

        ck_assert_ptr_nonnull(mkdtemp(folder));
        dir_fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        ck_assert_int_eq(luv_write_file_atomic(dir_fd, "x", "old", 3, 0600), 0);
        ck_assert_int_eq(luv_write_file_atomic(dir_fd, "x", "newer", 5, 0640), 0);
        ck_assert_int_eq(luv_read_file(dir_fd, "x", 100, &text, NULL), 0);
        ck_assert_str_eq(text, "newer");
        ck_assert_int_eq(fstatat(dir_fd, "x", &st, 0), 0);
        ck_assert_uint_eq(st.st_mode & 07777, 0640);
        /* A folder stands where the file should: nothing is left of the attempt. */
        ck_assert_int_eq(mkdirat(dir_fd, "d", 0700), 0);
        ck_assert_int_eq(luv_write_file_atomic(dir_fd, "d", "x", 1, 0600), -EISDIR);
        ck_assert_int_eq(luv_write_file_atomic(dir_fd, "no/x", "x", 1, 0600), -ENOENT);
        ck_assert_int_eq(unlinkat(dir_fd, "x", 0), 0);
        ck_assert_int_eq(unlinkat(dir_fd, "d", AT_REMOVEDIR), 0);
        ck_assert_int_eq(rmdir(folder), 0);
}
END_TEST

START_TEST(sealed)
{
        _cleanup_close_ int fd = luv_memfd_sealed("x", "data", 4);
        char buffer[8];

        ck_assert_int_ge(fd, 0);
        ck_assert_int_eq(fcntl(fd, F_GETFD), FD_CLOEXEC);
        ck_assert_int_eq(read(fd, buffer, sizeof(buffer)), 4);
        ck_assert_int_lt(pwrite(fd, "x", 1, 0), 0);
        ck_assert_int_lt(ftruncate(fd, 0), 0);
        ck_assert_int_lt(ftruncate(fd, 8), 0);
        ck_assert_int_eq(luv_fd_set_cloexec(fd, false), 0);
        ck_assert_int_eq(fcntl(fd, F_GETFD), 0);
        ck_assert_int_eq(luv_fd_set_cloexec(-1, false), -EBADF);
}
END_TEST

START_TEST(strings)
{
        _cleanup_strv_ char **v = NULL, **copy = NULL;
        _cleanup_free_ char *s = NULL, *reason = NULL;
        char a[LUVFIO_ID_SIZE], b[LUVFIO_ID_SIZE];

        ck_assert_uint_eq(luv_strv_length(NULL), 0);
        ck_assert(!luv_strv_contains(NULL, "a"));
        ck_assert_int_eq(luv_strv_extend(&v, "a"), 0);
        ck_assert_int_eq(luv_strv_extend(&v, "b"), 0);
        ck_assert_uint_eq(luv_strv_length(v), 2);
        ck_assert(luv_strv_contains(v, "b"));
        ck_assert(!luv_strv_contains(v, "c"));
        ck_assert_int_eq(luv_strv_copy(v, &copy), 0);
        ck_assert_str_eq(copy[1], "b");
        ck_assert_ptr_null(copy[2]);

        ck_assert_int_eq(luv_free_and_strdup(&s, "x"), 0);
        ck_assert_int_eq(luv_free_and_strdup(&s, "y"), 0);
        ck_assert_str_eq(s, "y");
        ck_assert_int_eq(luv_free_and_strdup(&s, NULL), 0);
        ck_assert_ptr_null(s);
        ck_assert_int_eq(luv_reason(&reason, -EBUSY, "%s is %i", "x", 1), -EBUSY);
        ck_assert_str_eq(reason, "x is 1");
        ck_assert_int_eq(luv_reason(NULL, -EBUSY, "x"), -EBUSY);

        luv_random_id(a);
        luv_random_id(b);
        ck_assert(luv_id_valid(a));
        ck_assert_str_ne(a, b);
        ck_assert_str_eq(startswith("luvfio-x", "luvfio-"), "x");
        ck_assert_ptr_null(startswith("luv", "luvfio-"));
}
END_TEST

START_TEST(names)
{
        static const char *const machines[] = { "a", "A0", "vm-1.x_y", "0",
                                                "012345678901234567890123456789012345678901234567" };
        static const char *const no_machines[] = {
                "",    "-a",  ".a",       "_a", "a b",
                "a/b", "a\n", "\303\244", "a:", "0123456789012345678901234567890123456789012345678"
        };
        static const char *const addresses[] = { "0000:00:03.0", "10000:e1:1f.7", "abcdef01:00:00.0" };
        static const char *const no_addresses[] = { "",
                                                    "0000:00:03",
                                                    "0000:00:03.8",
                                                    "0000:00:20.0",
                                                    "000:00:03.0",
                                                    "0000:00:03.0 ",
                                                    "0000:0:03.0",
                                                    "123456789:00:00.0",
                                                    "0000:00:0G.0",
                                                    "0000:AA:00.0",
                                                    "../../../x:00:00.0",
                                                    "0000:00:03.00" };
        char name[66];

        for (size_t i = 0; i < ELEMENTSOF(machines); i++)
                ck_assert_msg(luv_machine_name_valid(machines[i]), "%s", machines[i]);
        for (size_t i = 0; i < ELEMENTSOF(no_machines); i++)
                ck_assert_msg(!luv_machine_name_valid(no_machines[i]), "%s", no_machines[i]);
        for (size_t i = 0; i < ELEMENTSOF(addresses); i++)
                ck_assert_msg(luv_pci_address_valid(addresses[i]), "%s", addresses[i]);
        for (size_t i = 0; i < ELEMENTSOF(no_addresses); i++)
                ck_assert_msg(!luv_pci_address_valid(no_addresses[i]), "%s", no_addresses[i]);
        ck_assert(!luv_machine_name_valid(NULL));
        ck_assert(!luv_pci_address_valid(NULL));
        ck_assert(!luv_id_valid(NULL));
        ck_assert(!luv_fd_name_valid(NULL));
        ck_assert(!luv_id_valid("0123456789abcdef0123456789abcde"));
        ck_assert(!luv_id_valid("0123456789abcdef0123456789abcdef0"));
        ck_assert(!luv_id_valid("0123456789ABCDEF0123456789ABCDEF"));
        ck_assert(luv_id_valid("0123456789abcdef0123456789abcdef"));

        memset(name, 'x', sizeof(name));
        name[64] = 0;
        ck_assert(luv_fd_name_valid(name));
        name[64] = 'x';
        name[65] = 0;
        ck_assert(!luv_fd_name_valid(name));
        ck_assert(!luv_fd_name_valid(""));
        ck_assert(!luv_fd_name_valid("a\tb"));
        ck_assert(!luv_fd_name_valid("\303\244"));
        ck_assert(luv_fd_name_valid("pc.ram 0 ~"));
}
END_TEST

START_TEST(utf8)
{
        static const char *const good[] = {
                "", "abc", "\303\244", "\342\202\254", "\360\237\230\200", "\364\217\277\277"
        };
        static const char *const bad[] = { "\200",
                                           "\303",
                                           "\303(",
                                           "\300\257",
                                           "\340\200\257",
                                           "\355\240\200",
                                           "\364\220\200\200",
                                           "\370\210\200\200\200",
                                           "\377",
                                           "\360\237\230" };

        for (size_t i = 0; i < ELEMENTSOF(good); i++)
                ck_assert_msg(luv_utf8_valid(good[i], strlen(good[i])), "%zu", i);
        for (size_t i = 0; i < ELEMENTSOF(bad); i++)
                ck_assert_msg(!luv_utf8_valid(bad[i], strlen(bad[i])), "%zu", i);
        ck_assert(!luv_utf8_valid("a\0b", 3));
}
END_TEST

START_TEST(numbers)
{
        uint64_t v = 7;

        ck_assert_int_eq(luv_parse_u64("18446744073709551615", &v), 0);
        ck_assert_uint_eq(v, UINT64_MAX);
        ck_assert_int_eq(luv_parse_u64("18446744073709551616", &v), -ERANGE);
        ck_assert_int_eq(luv_parse_u64("99999999999999999999", &v), -ERANGE);
        ck_assert_int_eq(luv_parse_u64("", &v), -EINVAL);
        ck_assert_int_eq(luv_parse_u64(NULL, &v), -EINVAL);
        ck_assert_int_eq(luv_parse_u64("-1", &v), -EINVAL);
        ck_assert_int_eq(luv_parse_u64("+1", &v), -EINVAL);
        ck_assert_int_eq(luv_parse_u64(" 1", &v), -EINVAL);
        ck_assert_int_eq(luv_parse_u64("1x", &v), -EINVAL);
        ck_assert_uint_eq(v, UINT64_MAX);

        ck_assert_int_eq(luv_parse_timespan("2", &v), 0);
        ck_assert_uint_eq(v, 2 * USEC_PER_SEC);
        ck_assert_int_eq(luv_parse_timespan("2s", &v), 0);
        ck_assert_uint_eq(v, 2 * USEC_PER_SEC);
        ck_assert_int_eq(luv_parse_timespan("150ms", &v), 0);
        ck_assert_uint_eq(v, 150 * USEC_PER_MSEC);
        ck_assert_int_eq(luv_parse_timespan("3min", &v), 0);
        ck_assert_uint_eq(v, 180 * USEC_PER_SEC);
        ck_assert_int_eq(luv_parse_timespan("5us", &v), 0);
        ck_assert_uint_eq(v, 5);
        ck_assert_int_eq(luv_parse_timespan("s", &v), -EINVAL);
        ck_assert_int_eq(luv_parse_timespan("1h", &v), -EINVAL);
        ck_assert_int_eq(luv_parse_timespan("1 s", &v), -EINVAL);
        ck_assert_int_eq(luv_parse_timespan("18446744073709551615", &v), -ERANGE);

        ck_assert_int_eq(luv_parse_errno("EBUSY"), EBUSY);
        ck_assert_int_eq(luv_parse_errno("16"), EBUSY);
        ck_assert_int_eq(luv_parse_errno("EWHAT"), -EINVAL);
        ck_assert_int_eq(luv_parse_errno("0"), -EINVAL);
        ck_assert_int_eq(luv_parse_errno(NULL), -EINVAL);
}
END_TEST

START_TEST(times)
{
        uint64_t now = luv_now_usec();

        ck_assert_uint_gt(now, 0);
        ck_assert_uint_gt(luv_realtime_usec(), UINT64_C(1500000000) * USEC_PER_SEC);
        ck_assert_uint_eq(luv_usec_left(0), UINT64_MAX);
        ck_assert_uint_eq(luv_usec_left(1), 0);
        ck_assert_uint_le(luv_usec_left(now + USEC_PER_SEC), USEC_PER_SEC);
}
END_TEST

START_TEST(json)
{
        _cleanup_json_ struct json_object *o = NULL;
        static const char *const bad[] = {
                "",
                "{",
                "{}x",
                "{\"a\":1,}",
                "nonsense",
                "{\"a\":\"\\\303\244\"}",
                "{\303\244}",
                "{\"a\":\"\xed\xa0\x80\"}",
                "[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]",
                "{\"a\":99999999999999999999999}",
        };
        static const char good[] = "{\"s\":\"x\",\"n\":18446744073709551614,\"big\":18446744073709551615,"
                                   "\"neg\":-1,\"u\":\"\303\244\342\202\254\360\237\230\200\\\\\303\244\","
                                   "\"f\":1.5,\"b\":true,\"null\":null,\"zero\":\"a\\u0000b\"}";
        _cleanup_free_ char *s = NULL, *u = NULL;
        struct json_object *none = NULL;
        char *nothing = NULL;
        bool yes = false;
        uint64_t n;

        for (size_t i = 0; i < ELEMENTSOF(bad); i++) {
                _cleanup_free_ char *reason = NULL;
                _cleanup_json_ struct json_object *parsed = NULL;
                int r = luv_json_parse(bad[i], strlen(bad[i]), &parsed, &reason);

                /* Numbers that are too big are cut by the parser, and refused where they are read. */
                if (r == 0) {
                        ck_assert_int_eq(luv_json_get_u64(parsed, "it", "a", false, &n, &reason), -EBADMSG);
                } else
                        ck_assert_int_eq(r, -EBADMSG);
                ck_assert_ptr_nonnull(reason);
        }
        ck_assert_int_eq(luv_json_parse(good, LUVFIO_JSON_SIZE_MAX + 1, &none, NULL), -EBADMSG);
        ck_assert_int_eq(luv_json_parse(good, strlen(good), &o, NULL), 0);
        ck_assert_int_eq(luv_json_get_string(o, "it", "s", false, &s, NULL), 0);
        ck_assert_str_eq(s, "x");
        ck_assert_int_eq(luv_json_get_string(o, "it", "u", false, &u, NULL), 0);
        ck_assert_str_eq(u, "\303\244\342\202\254\360\237\230\200\\\303\244");
        ck_assert_int_eq(luv_json_get_u64(o, "it", "n", false, &n, NULL), 0);
        ck_assert_uint_eq(n, UINT64_MAX - 1);
        ck_assert_int_eq(luv_json_get_u64(o, "it", "big", false, &n, NULL), -EBADMSG);
        ck_assert_int_eq(luv_json_get_u64(o, "it", "neg", false, &n, NULL), -EBADMSG);
        ck_assert_int_eq(luv_json_get_u64(o, "it", "f", false, &n, NULL), -EBADMSG);
        ck_assert_int_eq(luv_json_get_u64(o, "it", "s", false, &n, NULL), -EBADMSG);
        ck_assert_int_eq(luv_json_get_u64(o, "it", "none", false, &n, NULL), -EBADMSG);
        ck_assert_int_eq(luv_json_get_u64(o, "it", "null", false, &n, NULL), -EBADMSG);
        ck_assert_int_eq(luv_json_get_u64(o, "it", "null", true, &n, NULL), 0);
        ck_assert_uint_eq(n, 0);
        ck_assert_int_eq(luv_json_get_string(o, "it", "zero", false, &nothing, NULL), -EBADMSG);
        ck_assert_int_eq(luv_json_get_string(o, "it", "none", true, &nothing, NULL), 0);
        ck_assert_ptr_null(nothing);
        ck_assert_int_eq(luv_json_get_bool(o, "it", "b", false, &yes, NULL), 0);
        ck_assert(yes);
        ck_assert_int_eq(luv_json_get_bool(o, "it", "s", false, &yes, NULL), -EBADMSG);
}
END_TEST

typedef struct Sample {
        char *name, *more;
        uint64_t number, other;
        bool yes, no;
} Sample;

START_TEST(json_fields)
{
        static const JsonField fields[] = {
                JSON_STRING(Sample, name, false),
                JSON_STRING(Sample, more, true),
                JSON_U64(Sample, number, false),
                JSON_U64(Sample, other, true),
                JSON_BOOL(Sample, yes, false),
                JSON_BOOL(Sample, no, true),
                {},
        };
        static const char *const bad[] = {
                "{}",
                "[]",
                "{\"name\":\"n\",\"number\":0}",
                "{\"name\":\"n\",\"number\":0,\"yes\":1}",
                "{\"name\":\"n\",\"number\":\"0\",\"yes\":true}",
                "{\"name\":null,\"number\":0,\"yes\":true}",
                "{\"name\":\"n\",\"number\":0,\"yes\":true,\"more\":7}",
        };
        Sample s = { .name = (char *) "n", .number = 0, .yes = false }, back = {};
        _cleanup_json_ struct json_object *o = json_object_new_object();

        ck_assert_int_eq(luv_json_add_fields(o, fields, &s), 0);
        /* Members that may be absent are so where there is nothing in them. */
        ck_assert_str_eq(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN),
                         "{\"name\":\"n\",\"number\":0,\"yes\":false}");
        ck_assert_int_eq(luv_json_get_fields(o, "it", fields, &back, NULL), 0);
        ck_assert_str_eq(back.name, "n");
        ck_assert_ptr_null(back.more);
        free(back.name);

        s = (Sample) { (char *) "n", (char *) "m", 1, UINT64_MAX - 1, true, true };
        back = (Sample) {};
        ck_assert_int_eq(luv_json_add_fields(o, fields, &s), 0);
        ck_assert_int_eq(luv_json_get_fields(o, "it", fields, &back, NULL), 0);
        ck_assert_str_eq(back.more, "m");
        ck_assert_uint_eq(back.number, 1);
        ck_assert_uint_eq(back.other, UINT64_MAX - 1);
        ck_assert(back.yes && back.no);
        free(back.name);
        free(back.more);

        for (size_t i = 0; i < ELEMENTSOF(bad); i++) {
                _cleanup_json_ struct json_object *parsed = NULL;
                _cleanup_free_ char *reason = NULL;

                back = (Sample) {};
                ck_assert_int_eq(luv_json_parse(bad[i], strlen(bad[i]), &parsed, NULL), 0);
                ck_assert_int_eq(luv_json_get_fields(parsed, "it", fields, &back, &reason), -EBADMSG);
                ck_assert_ptr_nonnull(reason);
                free(back.name);
                free(back.more);
        }
}
END_TEST

START_TEST(cgroups)
{
        _cleanup_free_ char *own = NULL, *same = NULL, *chosen = NULL;
        _cleanup_close_ int fd = -EBADF, pidfd = -EBADF;
        char *none = NULL;
        pid_t pid;

        ck_assert_int_eq(luv_cgroup_of_pid(0, &own), 0);
        ck_assert_int_eq(own[0], '/');
        ck_assert_int_eq(luv_cgroup_of_pid(getpid(), &same), 0);
        ck_assert_str_eq(own, same);
        ck_assert_int_eq(luv_cgroup_of_pid(INT32_MAX, &none), -ESRCH);
        ck_assert_int_eq(luv_cgroup_open("/no-such-cgroup"), -ENOENT);
        ck_assert_int_eq(luv_cgroup_is_frozen("/no-such-cgroup"), -ENOENT);

        pid = fork();
        if (pid == 0)
                for (;;)
                        (void) pause();
        ck_assert_int_ge(pid, 0);
        pidfd = pidfd_open(pid, 0);
        free(same);
        same = NULL;
        ck_assert_int_eq(luv_cgroup_of_pidfd(pidfd, &same), 0);
        ck_assert_str_eq(own, same);
        ck_assert_int_eq(kill(pid, SIGKILL), 0);
        ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
        ck_assert_int_eq(luv_cgroup_of_pidfd(pidfd, &none), -ESRCH);
        ck_assert_int_eq(luv_cgroup_of_pidfd(STDIN_FILENO, &none), -EBADF);
        ck_assert_int_eq(luv_cgroup_of_pidfd(-1, &none), -EBADF);

        fd = luv_cgroup_open_for_process(own, &chosen);
        /* Where no unified tree is mounted there is none to open. */
        if (fd >= 0)
                ck_assert(startswith(own, chosen));
        else
                ck_assert_int_eq(fd, -ENOENT);
}
END_TEST

/* Lines for whoever reads stderr: with priorities, below the level nothing. */
START_TEST(logging)
{
        int saved = dup(STDERR_FILENO), fd = memfd_create("log", MFD_CLOEXEC);
        char text[256] = "";

        ck_assert_int_ge(dup2(fd, STDERR_FILENO), 0);
        luv_log_set_max_level(LOG_INFO);
        ck_assert_int_eq(luv_log_get_max_level(), LOG_INFO);
        luv_log_info("one %i", 1);
        luv_log_debug("not seen");
        luv_log_struct(LOG_NOTICE, &(LogFields) { .machine = "a", .error = -EBUSY }, "two");
        ck_assert_int_eq(luv_log_error(-ENOENT, "three"), -ENOENT);
        ck_assert_int_eq(luv_log_errno(LOG_WARNING, EBUSY, "four"), -EBUSY);
        ck_assert_int_ge(dup2(saved, STDERR_FILENO), 0);
        ck_assert_int_gt(pread(fd, text, sizeof(text) - 1, 0), 0);
        ck_assert_str_eq(text, "<6>one 1\n<5>two\n<3>three: No such file or directory\n"
                               "<4>four: Device or resource busy\n");
        (void) close(saved);
        (void) close(fd);
}
END_TEST

int main(void)
{
        Suite *suite = suite_create("util");
        TCase *c = tcase_create("util");
        SRunner *runner;
        int failed;

        tcase_add_test(c, crc32c);
        tcase_add_test(c, reading);
        tcase_add_test(c, atomic_files);
        tcase_add_test(c, sealed);
        tcase_add_test(c, strings);
        tcase_add_test(c, names);
        tcase_add_test(c, utf8);
        tcase_add_test(c, numbers);
        tcase_add_test(c, times);
        tcase_add_test(c, json);
        tcase_add_test(c, json_fields);
        tcase_add_test(c, cgroups);
        tcase_add_test(c, logging);
        suite_add_tcase(suite, c);
        runner = srunner_create(suite);
        srunner_set_tap(runner, "-");
        srunner_run_all(runner, CK_SILENT);
        failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
