/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <check.h>

#include "report/report.h"
#include "report/timeline.h"

#define KHZ UINT64_C(2000000)

/* A jump of three seconds; the new kernel's clock begins with 400 ms. */
static Timeline jumped(bool tsc)
{
        return (Timeline) {
                .started_usec = 1000000,
                .started_realtime_usec = 50000000,
                .outgoing = { .boottime_usec = 10000000,
                              .realtime_usec = 60000000,
                              .tsc = tsc ? 5 * KHZ : 0,
                              .tsc_khz = tsc ? KHZ : 0 },
                .incoming = { .boottime_usec = 400000,
                              .realtime_usec = 63500000,
                              .tsc = tsc ? 5 * KHZ + 3000 * KHZ : 0,
                              .tsc_khz = tsc ? KHZ : 0 },
        };
}

START_TEST(no_jump)
{
        Timeline t = { .outgoing = { .boottime_usec = 5 } };

        ck_assert_int_eq(luv_timeline_clock(&t), TIMELINE_CLOCK_NONE);
        ck_assert_uint_eq(luv_timeline_to_outgoing(&t, 7), 7);
}
END_TEST

START_TEST(by_tsc)
{
        Timeline t = jumped(true);

        ck_assert_int_eq(luv_timeline_clock(&t), TIMELINE_CLOCK_TSC);
        ck_assert_uint_eq(luv_timeline_to_outgoing(&t, 400000), 13000000);
        ck_assert_uint_eq(luv_timeline_to_outgoing(&t, 1400000), 14000000);
        /* Before the new daemon looked at its clock. */
        ck_assert_uint_eq(luv_timeline_to_outgoing(&t, 100000), 12700000);
        ck_assert_uint_eq(luv_timeline_to_outgoing(&t, 0), 12600000);
}
END_TEST

START_TEST(by_realtime)
{
        Timeline t = jumped(false);

        ck_assert_int_eq(luv_timeline_clock(&t), TIMELINE_CLOCK_REALTIME);
        ck_assert_uint_eq(luv_timeline_to_outgoing(&t, 400000), 13500000);
        /* A clock that was set back over the jump: no time goes backwards. */
        t.incoming.realtime_usec = 1;
        ck_assert_uint_eq(luv_timeline_to_outgoing(&t, 400000), 10000000);
}
END_TEST

START_TEST(tsc_not_believed)
{
        Timeline t = jumped(true);

        /* Reset on the way. */
        t.incoming.tsc = KHZ;
        ck_assert_int_eq(luv_timeline_clock(&t), TIMELINE_CLOCK_REALTIME);
        /* Another rate: it is no invariant one after all. */
        t = jumped(true);
        t.incoming.tsc_khz = KHZ / 2;
        ck_assert_int_eq(luv_timeline_clock(&t), TIMELINE_CLOCK_REALTIME);
        /* Measured twice, never the same to the last digit. */
        t.incoming.tsc_khz = KHZ + KHZ / 1000;
        ck_assert_int_eq(luv_timeline_clock(&t), TIMELINE_CLOCK_TSC);
}
END_TEST

START_TEST(phases)
{
        Timeline t = {};

        ck_assert_int_eq(luv_timeline_begin(&t, "staging", NULL, false, 10), 0);
        ck_assert_int_eq(luv_timeline_begin(&t, "staging", "vm", false, 20), 0);
        luv_timeline_end(&t, "staging", NULL, 30);
        ck_assert_uint_eq(t.n_phases, 2);
        ck_assert_uint_eq(t.phases[0].end_usec, 30);
        ck_assert_uint_eq(t.phases[1].end_usec, 0);
        /* Begun anew: the one that is open ends. */
        ck_assert_int_eq(luv_timeline_begin(&t, "staging", "vm", false, 40), 0);
        ck_assert_uint_eq(t.n_phases, 3);
        ck_assert_uint_eq(t.phases[1].end_usec, 40);
        /* Never negative, and nothing happens to what is not there. */
        luv_timeline_end(&t, "staging", "vm", 1);
        ck_assert_uint_eq(t.phases[2].end_usec, 40);
        luv_timeline_end(&t, "nothing", NULL, 50);
        luv_timeline_done(&t);
        ck_assert_ptr_null(t.phases);
}
END_TEST

START_TEST(anchor)
{
        TimelineAnchor a, b;

        ck_assert_int_eq(luv_timeline_anchor(&a), 0);
        ck_assert_int_eq(luv_timeline_anchor(&b), 0);
        ck_assert_uint_gt(a.boottime_usec, 0);
        ck_assert_uint_ge(b.boottime_usec, a.boottime_usec);
        ck_assert_uint_ge(b.tsc, a.tsc);
        ck_assert(a.tsc > 0 || a.tsc_khz == 0);
}
END_TEST

START_TEST(report)
{
        Timeline t = jumped(true);
        Report *r;

        ck_assert_int_eq(luv_timeline_begin(&t, "resuming", NULL, true, 500000), 0);
        luv_timeline_end(&t, "resuming", NULL, 900000);
        ck_assert_int_eq(luv_timeline_begin(&t, "checking", NULL, false, 1000000), 0);
        luv_timeline_end(&t, "checking", NULL, 1000100);
        ck_assert_int_eq(luv_timeline_begin(&t, "open", NULL, false, 1000100), 0);
        ck_assert_int_eq(luv_report_new("id", REPORT_DONE, NULL, "a", "b", &r), 0);
        ck_assert_int_eq(luv_report_set_timeline(r, &t), 0);
        luv_report_sort(r);
        /* In order, on one clock that begins with the update; what never ended is left out. */
        ck_assert_uint_eq(r->n_phases, 2);
        ck_assert_str_eq(r->phases[0].name, "checking");
        ck_assert_uint_eq(r->phases[0].start_usec, 0);
        ck_assert_uint_eq(r->phases[0].duration_usec, 100);
        ck_assert_str_eq(r->phases[1].name, "resuming");
        ck_assert_uint_eq(r->phases[1].start_usec, 12100000);
        ck_assert_uint_eq(r->phases[1].duration_usec, 400000);
        luv_report_free(r);
        luv_timeline_done(&t);
}
END_TEST

START_TEST(names)
{
        for (TimelineClock c = 0; c < _TIMELINE_CLOCK_MAX; c++)
                ck_assert_ptr_nonnull(luv_timeline_clock_to_string(c));
        ck_assert_ptr_null(luv_timeline_clock_to_string(_TIMELINE_CLOCK_INVALID));
        for (ReportResult i = 0; i < _REPORT_RESULT_MAX; i++)
                ck_assert_int_eq(luv_report_result_from_string(luv_report_result_to_string(i)), i);
        ck_assert_int_lt(luv_report_result_from_string("nonsense"), 0);
}
END_TEST

int main(void)
{
        Suite *s = suite_create("timeline");
        TCase *c = tcase_create("timeline");
        SRunner *r;

        tcase_add_test(c, no_jump);
        tcase_add_test(c, by_tsc);
        tcase_add_test(c, by_realtime);
        tcase_add_test(c, tsc_not_believed);
        tcase_add_test(c, phases);
        tcase_add_test(c, anchor);
        tcase_add_test(c, report);
        tcase_add_test(c, names);
        suite_add_tcase(s, c);
        r = srunner_create(s);
        srunner_set_tap(r, "-");
        srunner_run_all(r, CK_SILENT);
        srunner_free(r);
        return 0;
}
