/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <check.h>

#include "ctl/ctl-args.h"
#include "ctl/ctl-format.h"
#include "ctl/ctl-show.h"
#include "util/string-util.h"
#include "varlink/idl.h"

#define ARGV(...) ((char *[]) { (char *) "luvfioctl", __VA_ARGS__ __VA_OPT__(, ) NULL })
#define S(s) ((char *) (s))

static int parse(char *argv[], Options *ret, char **ret_reason)
{
        int argc = 0;

        while (argv[argc])
                argc++;
        return ctl_parse_arguments(argc, argv, false, ret, ret_reason);
}

static Options parse_ok(char *argv[])
{
        _cleanup_free_ char *reason = NULL;
        Options o = {};

        ck_assert_msg(parse(argv, &o, &reason) == 0, "%s", strempty(reason));
        return o;
}

static void assert_refused(char *argv[], const char *word)
{
        _cleanup_free_ char *reason = NULL;
        Options o = {};

        ck_assert_int_eq(parse(argv, &o, &reason), -EINVAL);
        ck_assert_ptr_nonnull(reason);
        ck_assert_msg(strstr(reason, word) != NULL, "'%s' is not in: %s", word, reason);
}

START_TEST(test_arguments)
{
        _cleanup_(ctl_options_done) Options o = parse_ok(ARGV());

        ck_assert_int_eq(o.verb, VERB_STATUS);
        ck_assert_int_eq(o.json, JSON_MODE_OFF);
        ck_assert_str_eq(o.socket, LUVFIO_HOST_SOCKET);
        ck_assert(o.ask_password);

        o = parse_ok(ARGV(S("update"), S("/boot/k"), S("--initrd"), S("/boot/i"), S("--cmdline=a b"),
                          S("--dry-run"), S("--deadline=1500ms"), S("--sacrifice=a"), S("--sacrifice"),
                          S("b"), S("--sacrifice=a"), S("--fallback=cold"), S("-j"), S("--no-ask-password"),
                          S("--socket=/x")));
        ck_assert_int_eq(o.verb, VERB_UPDATE);
        ck_assert_str_eq(o.argument, "/boot/k");
        ck_assert_str_eq(o.initrd, "/boot/i");
        ck_assert_str_eq(o.command_line, "a b");
        ck_assert(o.dry_run);
        ck_assert_uint_eq(o.deadline_usec, 1500000);
        ck_assert_uint_eq(luv_strv_length(o.sacrifice), 2);
        ck_assert_str_eq(o.fallback, "cold");
        ck_assert_int_eq(o.json, JSON_MODE_SHORT);
        ck_assert(!o.ask_password);
        ck_assert_str_eq(o.socket, "/x");
}
END_TEST

START_TEST(test_arguments_order)
{
        Options o = parse_ok(
                        ARGV(S("--json=pretty"), S("check"), S("--reuse-cmdline"), S("--"), S("--strange")));

        ck_assert_int_eq(o.verb, VERB_CHECK);
        ck_assert_str_eq(o.argument, "--strange");
        ck_assert_int_eq(o.json, JSON_MODE_PRETTY);

        /* What belongs to the command is not ours. */
        o = parse_ok(ARGV(S("inhibit"), S("--who=me"), S("ls"), S("--json"), S("--help"), S("-x")));
        ck_assert_int_eq(o.verb, VERB_INHIBIT);
        ck_assert_int_eq(o.json, JSON_MODE_OFF);
        ck_assert_str_eq(o.who, "me");
        ck_assert_str_eq(o.command[0], "ls");
        ck_assert_str_eq(o.command[3], "-x");
        ck_assert_ptr_null(o.command[4]);

        o = parse_ok(ARGV(S("inhibit"), S("--why"), S("x"), S("--"), S("--cmd"), S("a")));
        ck_assert_str_eq(o.command[0], "--cmd");
        ck_assert_str_eq(o.command[1], "a");

        o = parse_ok(ARGV(S("inhibit")));
        ck_assert_ptr_null(o.command);

        o = parse_ok(ARGV(S("update"), S("--version"), S("--nonsense")));
        ck_assert_int_eq(o.verb, VERB_VERSION);
        o = parse_ok(ARGV(S("-h")));
        ck_assert_int_eq(o.verb, VERB_HELP);
        o = parse_ok(ARGV(S("analyze"), S("abcd"), S("--svg=-")));
        ck_assert_str_eq(o.svg, "-");
        o = parse_ok(ARGV(S("history"), S("--lines=3")));
        ck_assert_uint_eq(o.lines, 3);
}
END_TEST

START_TEST(test_arguments_refused)
{
        assert_refused(ARGV(S("frobnicate")), "frobnicate");
        assert_refused(ARGV(S("--frob")), "--frob");
        assert_refused(ARGV(S("-x")), "-x");
        assert_refused(ARGV(S("--socket")), "--socket");
        assert_refused(ARGV(S("--socket=")), "--socket");
        assert_refused(ARGV(S("--dry-run=yes"), S("update")), "--dry-run");
        assert_refused(ARGV(S("--json=xml")), "xml");
        assert_refused(ARGV(S("status"), S("--dry-run")), "--dry-run");
        assert_refused(ARGV(S("check"), S("--deadline=1")), "--deadline");
        assert_refused(ARGV(S("stage"), S("--fallback=cold")), "--fallback");
        assert_refused(ARGV(S("status"), S("x")), "no argument");
        assert_refused(ARGV(S("update"), S("a"), S("b")), "one argument");
        assert_refused(ARGV(S("discard")), "machine");
        assert_refused(ARGV(S("update"), S("--initrd=x")), "--initrd");
        assert_refused(ARGV(S("update"), S("--cmdline=x"), S("--reuse-cmdline")), "exclude");
        assert_refused(ARGV(S("update"), S("--deadline=0")), "--deadline");
        assert_refused(ARGV(S("update"), S("--deadline=-3")), "--deadline");
        assert_refused(ARGV(S("update"), S("--deadline=soon")), "soon");
        assert_refused(ARGV(S("update"), S("--fallback=warm")), "warm");
        assert_refused(ARGV(S("update"), S("--sacrifice=../x")), "../x");
        assert_refused(ARGV(S("history"), S("--lines=0")), "--lines");
        assert_refused(ARGV(S("history"), S("--lines=x")), "--lines");
        assert_refused(ARGV(S("analyze"), S("--svg=")), "--svg");
        assert_refused(ARGV(S("analyze"), S("--svg=-"), S("--json")), "stdout");
}
END_TEST

START_TEST(test_help)
{
        _cleanup_free_ char *text = NULL;
        size_t size;
        FILE *f = open_memstream(&text, &size);

        ck_assert_ptr_nonnull(f);
        ctl_help(f);
        ck_assert_int_eq(fclose(f), 0);
        for (Verb v = 0; v < VERB_HELP; v++) {
                _cleanup_free_ char *line = luv_strf("\n  %s", verb_to_string(v));

                ck_assert_msg(strstr(text, line) != NULL, "%s is not explained", verb_to_string(v));
                ck_assert_int_eq(verb_from_string(verb_to_string(v)), v);
        }
        /* A terminal's width. */
        for (char *p = text, *e; (e = strchr(p, '\n')); p = e + 1)
                ck_assert_int_le(e - p, 90);
}
END_TEST

START_TEST(test_format)
{
        static const struct {
                uint64_t usec;
                const char *text;
        } times[] = {
                { 0, "0 us" },
                { 999, "999 us" },
                { 1000, "1.00 ms" },
                { 9994, "9.99 ms" },
                { 9995, "10.0 ms" },
                { 99949, "99.9 ms" },
                { 99950, "100 ms" },
                { 999499, "999 ms" },
                { 999500, "1.00 s" },
                { 4214999, "4.21 s" },
                { 9995000, "10.0 s" },
                { 59949999, "59.9 s" },
                { 59950000, "1 min 0 s" },
                { 3599400000, "59 min 59 s" },
                { 3600000000, "1 h 0 min" },
                { 172800000000, "2 d 0 h" },
                { UINT64_MAX, "213503982 d 8 h" },
        };
        static const struct {
                uint64_t bytes;
                const char *text;
        } sizes[] = {
                { 0, "0 B" },
                { 1023, "1023 B" },
                { 1024, "1 KiB" },
                { 1536, "1.5 KiB" },
                { (uint64_t) 256 << 20, "256 MiB" },
                { UINT64_MAX, "16 EiB" },
        };
        char buf[CTL_FORMAT_MAX];

        for (size_t i = 0; i < ELEMENTSOF(times); i++)
                ck_assert_str_eq(ctl_format_usec(buf, times[i].usec), times[i].text);
        for (size_t i = 0; i < ELEMENTSOF(sizes); i++)
                ck_assert_str_eq(ctl_format_bytes(buf, sizes[i].bytes), sizes[i].text);

        ck_assert_int_eq(setenv("TZ", "UTC", true), 0);
        ck_assert_str_eq(ctl_format_realtime(buf, 1700000000000000), "2023-11-14 22:13:20 UTC");
        /* A year that no calendar has must not end in nothing. */
        ck_assert_int_gt(strlen(ctl_format_realtime(buf, UINT64_MAX)), 0);
}
END_TEST

START_TEST(test_clean)
{
        static const struct {
                const char *dirty, *clean;
        } texts[] = {
                { NULL, "" },
                { "plain", "plain" },
                { "a\nb\tc", "a b c" },
                { "\033[31mred", "\\x1b[31mred" },
                { "\x7f\x01", "\\x7f\\x01" },
                { "gr\xc3\xbc\xc3\x9f", "gr\xc3\xbc\xc3\x9f" },
                { "\xc2\x9b"
                  "31m",
                  "\\u009b31m" },
                { "\xe2\x80\xae"
                  "abc",
                  "\\u202e"
                  "abc" },
                { "\xff\xfe", "\\xff\\xfe" },
                { "\xc3", "\\xc3" },
                { "\xf0\x9f\x90\xa7", "\xf0\x9f\x90\xa7" },
                { "\xed\xa0\x80", "\\xed\\xa0\\x80" },
        };

        for (size_t i = 0; i < ELEMENTSOF(texts); i++) {
                _cleanup_free_ char *clean = ctl_clean(texts[i].dirty);

                ck_assert_str_eq(clean, texts[i].clean);
        }
        ck_assert_uint_eq(ctl_width("gr\xc3\xbc\xc3\x9f"), 4);
}
END_TEST

typedef struct Capture {
        Terminal t;
        char *text;
        size_t size;
} Capture;

static void capture_begin(Capture *c)
{
        c->t = (Terminal) { .f = open_memstream(&c->text, &c->size), .columns = 80, .unicode = false };
        ck_assert_ptr_nonnull(c->t.f);
}

static const char *capture_end(Capture *c)
{
        ck_assert_int_eq(fclose(c->t.f), 0);
        return c->text;
}

static void capture_done(Capture *c)
{
        free(c->text);
}

START_TEST(test_table)
{
        static const char *const titles[] = { "NAME", "EMPTY", "N" };
        _cleanup_(ctl_table_done) Table table = { .titles = titles, .n_columns = 3, .right = 4 };
        _cleanup_(capture_done) Capture c = {};

        ctl_table_add(&table,
                      "gr\xc3\xbc\xc3\x9f"
                      "e",
                      STYLE_BOLD);
        ctl_table_add(&table, NULL, STYLE_NONE);
        ctl_table_addf(&table, STYLE_NONE, "%d", 7);
        ctl_table_add(&table, "\033[2J", STYLE_NONE);
        ctl_table_add(&table, "", STYLE_NONE);
        ctl_table_addf(&table, STYLE_NONE, "%d", 1234);
        capture_begin(&c);
        ck_assert_int_eq(ctl_table_print(&table, &c.t), 0);
        ck_assert_str_eq(capture_end(&c), "NAME        N\n"
                                          "gr\xc3\xbc\xc3\x9f"
                                          "e       7\n"
                                          "\\x1b[2J  1234\n");
}
END_TEST

static sd_json_variant *json(const char *text)
{
        sd_json_variant *v = NULL;

        ck_assert_int_ge(sd_json_parse(text, 0, &v, NULL, NULL), 0);
        return v;
}

#define REPORT                                                                                              \
        "{\"updateId\":\"0123456789abcdef0123456789abcdef\",\"result\":\"done\",\"startedRealtimeUSec\":"   \
        "1700000000000000,"                                                                                 \
        "\"fromKernel\":\"7.3.4-a\",\"toKernel\":\"7.3.4-b\",\"clock\":\"tsc\","                            \
        "\"machines\":[{\"machine\":\"m1\",\"blackoutUSec\":4210000},{\"machine\":\"m2\",\"blackoutUSec\":" \
        "null,"                                                                                             \
        "\"strandedReason\":\"its VMM did not come back\"}],"                                               \
        "\"phases\":[{\"name\":\"checking\",\"startUSec\":0,\"durationUSec\":20000},"                       \
        "{\"name\":\"staging\",\"startUSec\":20000,\"durationUSec\":2000000,\"machine\":null,\"new\":1},"   \
        "{\"name\":\"stop\",\"machine\":\"m1\",\"startUSec\":2020000,\"durationUSec\":210000},"             \
        "{\"name\":\"kernel\",\"machine\":\"m1\",\"startUSec\":2230000,\"durationUSec\":4000000}]}"

START_TEST(test_report)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = json(REPORT);
        _cleanup_(ctl_report_done) Report r = {};
        _cleanup_(capture_done) Capture c = {};
        uint64_t start, end;
        const char *bad, *text;

        ck_assert_int_eq(ctl_parse_report(v, &r, &bad), 0);
        ck_assert_uint_eq(r.n_machines, 2);
        ck_assert_uint_eq(r.n_phases, 4);
        ck_assert_uint_eq(ctl_report_worst_blackout(&r), 4210000);
        ck_assert(ctl_report_machine_span(&r, "m1", &start, &end));
        ck_assert_uint_eq(start, 2020000);
        ck_assert_uint_eq(end, 6230000);
        ck_assert(!ctl_report_machine_span(&r, "m2", &start, &end));

        capture_begin(&c);
        ck_assert_int_eq(ctl_show_analysis(&c.t, &r), 0);
        text = capture_end(&c);
        ck_assert_ptr_nonnull(strstr(text, "7.3.4-a -> 7.3.4-b"));
        ck_assert_ptr_nonnull(strstr(text, "its VMM did not come back"));
        ck_assert_ptr_nonnull(strstr(text, "MACHINE  BLACKOUT    stop  kernel\n"
                                           "m1         4.21 s  210 ms  4.00 s  ##---"));
        ck_assert_ptr_nonnull(strstr(text, "\n  staging            2.00 s"));
}
END_TEST

/* Each is a reply in which one thing is not as it must be. */
START_TEST(test_median)
{
        static const char report[] = "{\"updateId\":\"0\",\"result\":\"done\",\"startedRealtimeUSec\":1,"
                                     "\"fromKernel\":\"a\","
                                     "\"clock\":\"tsc\",\"phases\":[],\"machines\":["
                                     "{\"machine\":\"a\",\"blackoutUSec\":3000000},{\"machine\":\"b\","
                                     "\"blackoutUSec\":1000000}"
                                     "%s]}";
        static const struct {
                const char *more, *text;
        } cases[] = {
                { "", "Median 2.00 s, longest 3.00 s.\n" },
                { ",{\"machine\":\"c\"}", "Median 2.00 s, longest 3.00 s.\n" },
                { ",{\"machine\":\"c\",\"blackoutUSec\":9000000}", "Median 3.00 s, longest 9.00 s.\n" },
        };

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                _cleanup_free_ char *text = luv_strf(report, cases[i].more);
                _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = json(text);
                _cleanup_(ctl_report_done) Report r = {};
                _cleanup_(capture_done) Capture c = {};
                const char *bad;

                ck_assert_int_eq(ctl_parse_report(v, &r, &bad), 0);
                capture_begin(&c);
                ck_assert_int_eq(ctl_show_analysis(&c.t, &r), 0);
                ck_assert_ptr_nonnull(strstr(capture_end(&c), cases[i].text));
        }
}
END_TEST

/* One whose owner is not known, since its part of the record could not be read; another that runs. */
START_TEST(test_machines)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = json(
                        "{\"machines\":[{\"name\":\"lost\",\"state\":\"stranded\",\"reason\":\"damaged\","
                        "\"attached\":false,\"generation\":0,\"fileDescriptors\":0,\"memoryBytes\":0,"
                        "\"devices\":[]},"
                        "{\"name\":\"m1\",\"state\":\"running\",\"uid\":7,\"pid\":8,\"attached\":true,"
                        "\"generation\":1,\"fileDescriptors\":2,\"memoryBytes\":1024,\"devices\":[]}]}");
        _cleanup_(capture_done) Capture c = {};
        Machine *machines = NULL;
        const char *bad;
        size_t n = 0;

        ck_assert_int_eq(ctl_parse_machines(v, &machines, &n, &bad), 0);
        capture_begin(&c);
        c.t.colour = true;
        ck_assert_int_eq(ctl_show_machines(&c.t, machines, n), 0);
        ctl_machines_free(machines, n);
        ck_assert_ptr_nonnull(strstr(capture_end(&c), "\033[1;31mstranded, detached\033[0m    -    -"));
        ck_assert_ptr_nonnull(strstr(c.text, "running               7    8"));
        ck_assert_ptr_nonnull(strstr(c.text, "damaged\n"));
}
END_TEST

START_TEST(test_odd_replies)
{
        static const char *const reports[] = {
                "{}",
                "[]",
                "\"x\"",
                "null",
                "{\"updateId\":1}",
                "{\"updateId\":\"x\",\"result\":\"done\",\"startedRealtimeUSec\":-1,\"fromKernel\":\"\","
                "\"clock\":\"\",\"machines\":[],\"phases\":[]}",
                "{\"updateId\":\"x\",\"result\":\"done\",\"startedRealtimeUSec\":1.5,\"fromKernel\":\"\","
                "\"clock\":\"\",\"machines\":[],\"phases\":[]}",
                "{\"updateId\":\"x\",\"result\":\"done\",\"startedRealtimeUSec\":1,\"fromKernel\":\"\","
                "\"clock\":\"\",\"machines\":{},\"phases\":[]}",
                "{\"updateId\":\"x\",\"result\":\"done\",\"startedRealtimeUSec\":1,\"fromKernel\":\"\","
                "\"clock\":\"\",\"machines\":[],\"phases\":[7]}",
                "{\"updateId\":\"x\",\"result\":\"done\",\"startedRealtimeUSec\":1,\"fromKernel\":\"\","
                "\"clock\":\"\",\"machines\":[{\"machine\":null}],\"phases\":[]}",
        };
        static const char *const machines[] = {
                "{\"machines\":[{\"name\":\"x\"}]}",
                "{\"machines\":[{\"name\":\"x\",\"state\":\"running\",\"uid\":0,\"attached\":true,"
                "\"generation\":0,"
                "\"fileDescriptors\":1,\"memoryBytes\":1,\"devices\":[\"a\",1]}]}",
                "{\"machines\":[{\"name\":\"x\",\"state\":\"running\",\"uid\":0,\"attached\":true,"
                "\"generation\":0,"
                "\"fileDescriptors\":1,\"memoryBytes\":1,\"devices\":[\"a\"]},{\"devices\":[\"b\"]}]}",
        };
        const char *bad;

        for (size_t i = 0; i < ELEMENTSOF(reports); i++) {
                _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = json(reports[i]);
                Report r = {};

                ck_assert_msg(ctl_parse_report(v, &r, &bad) == -EBADMSG, "%s", reports[i]);
        }
        for (size_t i = 0; i < ELEMENTSOF(machines); i++) {
                _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = json(machines[i]);
                Machine *m = NULL;
                size_t n = 0;

                ck_assert_msg(ctl_parse_machines(v, &m, &n, &bad) == -EBADMSG, "%s", machines[i]);
        }
}
END_TEST

/* Types are right and the values are nonsense: it is shown as well as it can be. */
START_TEST(test_extreme_report)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v =
                        json("{\"updateId\":\"\",\"result\":\"\",\"startedRealtimeUSec\":"
                             "18446744073709551615,\"fromKernel\":\"\\u001b\","
                             "\"clock\":\"realtime\",\"machines\":[{\"machine\":\"\",\"blackoutUSec\":"
                             "18446744073709551614},{\"machine\":\"a\"}],"
                             "\"phases\":[{\"name\":\"\\u001b[2J\",\"machine\":\"\",\"startUSec\":"
                             "18446744073709551615,\"durationUSec\":18446744073709551615},"
                             "{\"name\":\"x\",\"startUSec\":18446744073709551615,\"durationUSec\":"
                             "18446744073709551615},"
                             "{\"name\":\"b\",\"machine\":\"\",\"startUSec\":0,\"durationUSec\":0},"
                             "{\"name\":\"c\",\"machine\":\"a\",\"startUSec\":1,\"durationUSec\":"
                             "18446744073709551614}]}");
        _cleanup_(ctl_report_done) Report r = {};
        const char *bad;

        ck_assert_int_eq(ctl_parse_report(v, &r, &bad), 0);
        for (int unicode = 0; unicode < 2; unicode++) {
                _cleanup_(capture_done) Capture c = {};

                capture_begin(&c);
                c.t.unicode = unicode;
                ck_assert_int_eq(ctl_show_analysis(&c.t, &r), 0);
                ck_assert_int_eq(ctl_show_history(&c.t, &r, 1), 0);
                ck_assert_ptr_null(strchr(capture_end(&c), '\033'));
        }
}
END_TEST

START_TEST(test_findings)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v =
                        json("{\"findings\":[{\"id\":\"disk-slow\",\"severity\":\"warning\",\"message\":"
                             "\"Slow.\"},"
                             "{\"id\":\"fd-odd\",\"severity\":\"blocker\",\"machine\":\"m1\",\"device\":"
                             "\"0000:00:03.0\",\"message\":\"Odd.\",\"remedy\":\"Even it.\"},"
                             "{\"id\":\"new\",\"severity\":\"catastrophe\",\"message\":\"Later.\"}]}");
        _cleanup_free_ Finding *findings = NULL;
        _cleanup_(capture_done) Capture c = {};
        const char *bad;
        size_t n = 0;

        ck_assert_int_eq(ctl_parse_findings(v, &findings, &n, &bad), 0);
        capture_begin(&c);
        ck_assert_int_eq(ctl_show_findings(&c.t, findings, n), 0);
        ck_assert_str_eq(capture_end(&c), "blocker  fd-odd  machine m1  device 0000:00:03.0\n"
                                          "         Odd.\n"
                                          "         Remedy: Even it.\n"
                                          "warning  disk-slow\n"
                                          "         Slow.\n"
                                          "catastrophe new\n"
                                          "         Later.\n"
                                          "\n"
                                          "Blocked: 1 blocker, 1 warning.\n");
}
END_TEST

START_TEST(test_progress)
{
        static const struct {
                const char *json, *text;
        } replies[] = {
                { "{\"state\":\"staging\"}", "" },
                { "{\"state\":\"staging\",\"done\":1,\"total\":3}", "(1 of 3)" },
                { "{\"state\":\"staging\",\"message\":\"hello\",\"done\":1,\"total\":3}", "hello (1 of 3)" },
                { "{\"state\":\"staging\",\"machine\":\"m\",\"machineState\":\"prepared\"}", "m: prepared" },
                { "{\"state\":\"staging\",\"machine\":\"m\",\"message\":\"said\",\"machineState\":"
                  "\"prepared\",\"done\":null}",
                  "m: said" },
                { "{\"state\":\"staging\",\"machine\":\"m1\",\"message\":\"machine m1 waits\"}",
                  "machine m1 waits" },
                { "{\"state\":\"staging\",\"machine\":\"m1\",\"done\":1,\"total\":2}", "m1 (1 of 2)" },
        };

        for (size_t i = 0; i < ELEMENTSOF(replies); i++) {
                _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = json(replies[i].json);
                _cleanup_(ctl_progress_done) Progress p = {};
                _cleanup_free_ char *text = NULL;
                const char *bad;

                ck_assert_int_eq(ctl_parse_progress(v, &p, &bad), 0);
                text = ctl_progress_text(&p);
                ck_assert_str_eq(text, replies[i].text);
        }
}
END_TEST

int main(void)
{
        Suite *s = suite_create("ctl");
        TCase *t = tcase_create("all");
        SRunner *r;
        int failed;

        tcase_add_test(t, test_arguments);
        tcase_add_test(t, test_arguments_order);
        tcase_add_test(t, test_arguments_refused);
        tcase_add_test(t, test_help);
        tcase_add_test(t, test_format);
        tcase_add_test(t, test_clean);
        tcase_add_test(t, test_table);
        tcase_add_test(t, test_report);
        tcase_add_test(t, test_median);
        tcase_add_test(t, test_machines);
        tcase_add_test(t, test_odd_replies);
        tcase_add_test(t, test_extreme_report);
        tcase_add_test(t, test_findings);
        tcase_add_test(t, test_progress);
        suite_add_tcase(s, t);
        r = srunner_create(s);
        srunner_set_tap(r, "-");
        srunner_run_all(r, CK_SILENT);
        failed = srunner_ntests_failed(r);
        srunner_free(r);
        return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
