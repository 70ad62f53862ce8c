/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <check.h>
#include <dirent.h>
#include <fcntl.h>

#include "report/history.h"
#include "util/io.h"
#include "util/string-util.h"

static char folder[] = "/tmp/luvfiod-test-XXXXXX";

static void setup(void)
{
        strcpy(folder + strlen(folder) - 6, "XXXXXX");
        ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void teardown(void)
{
        char *command = luv_strf("rm -r %s", folder);

        ck_assert_int_eq(system(command), 0);
        free(command);
}

static Report *make(unsigned n)
{
        char *id = luv_strf("%032x", n);
        Report *r;

        ck_assert_int_eq(luv_report_new(id, n % 2 ? REPORT_DONE : REPORT_ABORTED,
                                        n % 2 ? NULL : "why \xc3\xa4", "a", "b", &r),
                         0);
        r->started_realtime_usec = n * UINT64_C(1000000000);
        r->clock = TIMELINE_CLOCK_TSC;
        ck_assert_int_eq(luv_report_add_machine(r, "vm1", 123, NULL), 0);
        ck_assert_int_eq(luv_report_add_machine(r, "vm2", UINT64_MAX, "gone"), 0);
        ck_assert_int_eq(luv_report_add_phase(r, "kernel", NULL, 1, 2), 0);
        ck_assert_int_eq(luv_report_add_phase(r, "stop", "vm1", 3, 4), 0);
        free(id);
        return r;
}

static void write_one(unsigned n)
{
        Report *r = make(n);

        ck_assert_int_eq(luv_history_write(folder, r), 0);
        luv_report_free(r);
}

START_TEST(round_trip)
{
        Report *r;

        write_one(2);
        ck_assert_int_eq(luv_history_find(folder, NULL, &r), 0);
        ck_assert_str_eq(r->update_id, "00000000000000000000000000000002");
        ck_assert_int_eq(r->result, REPORT_ABORTED);
        ck_assert_str_eq(r->reason, "why \xc3\xa4");
        ck_assert_uint_eq(r->started_realtime_usec, UINT64_C(2000000000));
        ck_assert_str_eq(r->from_kernel, "a");
        ck_assert_str_eq(r->to_kernel, "b");
        ck_assert_int_eq(r->clock, TIMELINE_CLOCK_TSC);
        ck_assert_uint_eq(r->n_machines, 2);
        ck_assert_uint_eq(r->machines[0].blackout_usec, 123);
        ck_assert_ptr_null(r->machines[0].stranded_reason);
        ck_assert_uint_eq(r->machines[1].blackout_usec, UINT64_MAX);
        ck_assert_str_eq(r->machines[1].stranded_reason, "gone");
        ck_assert_uint_eq(r->n_phases, 2);
        ck_assert_ptr_null(r->phases[0].machine);
        ck_assert_str_eq(r->phases[1].machine, "vm1");
        ck_assert_uint_eq(r->phases[1].duration_usec, 4);
        luv_report_free(r);
}
END_TEST

START_TEST(newest_first)
{
        Report **reports, *r;
        size_t n;

        for (unsigned i = 1; i <= 12; i++)
                write_one(i);
        ck_assert_int_eq(luv_history_read(folder, 3, &reports, &n), 0);
        ck_assert_uint_eq(n, 3);
        ck_assert_uint_eq(reports[0]->started_realtime_usec, UINT64_C(12000000000));
        ck_assert_uint_eq(reports[2]->started_realtime_usec, UINT64_C(10000000000));
        luv_history_free(reports, n);
        ck_assert_int_eq(luv_history_read(folder, 0, &reports, &n), 0);
        ck_assert_uint_eq(n, 0);
        luv_history_free(reports, n);
        ck_assert_int_eq(luv_history_find(folder, "00000000000000000000000000000005", &r), 0);
        ck_assert_uint_eq(r->started_realtime_usec, UINT64_C(5000000000));
        luv_report_free(r);
        ck_assert_int_eq(luv_history_find(folder, "5", &r), -ENOENT);
}
END_TEST

START_TEST(oldest_go)
{
        Report **reports;
        size_t n;

        for (unsigned i = 1; i <= LUVFIO_HISTORY_MAX + 5; i++)
                write_one(i);
        ck_assert_int_eq(luv_history_read(folder, 1000, &reports, &n), 0);
        ck_assert_uint_eq(n, LUVFIO_HISTORY_MAX);
        ck_assert_uint_eq(reports[n - 1]->started_realtime_usec, UINT64_C(6000000000));
        luv_history_free(reports, n);
}
END_TEST

START_TEST(nothing_there)
{
        Report **reports, *r;
        size_t n;

        ck_assert_int_eq(luv_history_read("/nonexistent", 10, &reports, &n), 0);
        ck_assert_uint_eq(n, 0);
        luv_history_free(reports, n);
        ck_assert_int_eq(luv_history_find("/nonexistent", NULL, &r), -ENOENT);
}
END_TEST

/* A damaged file costs itself. */
START_TEST(damage)
{
        const char *bad[] = {
                "", "{", "[]", "{}", "{\"updateId\":7}", "\xff", "{\"updateId\":\"x\",\"result\":\"odd\"}"
        };
        char *path = luv_strf("%s/history", folder);
        Report **reports;
        size_t n;
        int fd;

        write_one(1);
        fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        ck_assert_int_ge(fd, 0);
        for (size_t i = 0; i < ELEMENTSOF(bad); i++) {
                char *name = luv_strf("9%zu-x.json", i);

                ck_assert_int_eq(luv_write_file_atomic(fd, name, bad[i], strlen(bad[i]), 0644), 0);
                free(name);
        }
        ck_assert_int_eq(luv_history_read(folder, 10, &reports, &n), 0);
        ck_assert_uint_eq(n, 1);
        luv_history_free(reports, n);
        close(fd);
        free(path);
}
END_TEST

int main(void)
{
        Suite *s = suite_create("history");
        TCase *c = tcase_create("history");
        SRunner *r;

        tcase_add_checked_fixture(c, setup, teardown);
        tcase_add_test(c, round_trip);
        tcase_add_test(c, newest_first);
        tcase_add_test(c, oldest_go);
        tcase_add_test(c, nothing_there);
        tcase_add_test(c, damage);
        suite_add_tcase(s, c);
        r = srunner_create(s);
        srunner_set_tap(r, "-");
        srunner_run_all(r, CK_SILENT);
        srunner_free(r);
        return 0;
}
