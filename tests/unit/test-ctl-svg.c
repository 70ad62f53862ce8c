/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <check.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

#include "ctl/svg.h"
#include "util/string-util.h"

extern char **environ;

/* The picture of REPORT; also held against a parser that is not ours. */
static char *draw(const Report *report)
{
        char path[] = "/tmp/test-ctl-svg.XXXXXX", *text = NULL;
        char *xmllint[] = { (char *) "xmllint", (char *) "--noout", (char *) "--nonet", path, NULL };
        char *python[] = { (char *) "python3", (char *) "-c",
                           (char *) "import sys, xml.dom.minidom as m; m.parse(sys.argv[1])", path, NULL };
        size_t size = 0;
        int fd, status;
        pid_t pid;
        FILE *f;

        f = open_memstream(&text, &size);
        ck_assert_ptr_nonnull(f);
        ctl_svg_write(f, report);
        ck_assert_int_eq(fclose(f), 0);
        ck_assert_uint_eq(strlen(text), size);

        fd = mkostemp(path, O_CLOEXEC);
        ck_assert_int_ge(fd, 0);
        ck_assert_int_eq(write(fd, text, size), (ssize_t) size);
        ck_assert_int_eq(close(fd), 0);
        if (posix_spawnp(&pid, xmllint[0], NULL, NULL, xmllint, environ) == 0 ||
            posix_spawnp(&pid, python[0], NULL, NULL, python, environ) == 0) {
                ck_assert_int_eq(waitpid(pid, &status, 0), pid);
                ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s is not well-formed", path);
        }
        ck_assert_int_eq(unlink(path), 0);
        return text;
}

static size_t count(const char *text, const char *what)
{
        size_t n = 0;

        for (const char *p = text; (p = strstr(p, what)); p += strlen(what))
                n++;
        return n;
}

#define MACHINES_MAX 64
#define MACHINE_PHASES 4

/* An update of N machines, as one goes. */
static Report make(size_t n, MachineReport *machines, Phase *phases, char (*names)[32])
{
        static const struct {
                const char *name;
                uint64_t start, duration;
        } host[] = {
                { "checking", 0, 120000 },          { "staging", 120000, 2300000 },
                { "draining", 2420000, 1700000 },   { "quiescing", 4120000, 210000 },
                { "handing_over", 4330000, 45000 }, { "kernel", 4375000, 4100000 },
                { "restoring", 8475000, 90000 },    { "rebinding", 8565000, 60000 },
                { "resuming", 8625000, 350000 },    { "finishing", 8975000, 200000 },
        };
        static const char *const own[MACHINE_PHASES] = { "stop", "kernel", "wait", "resume" };
        size_t k = 0;

        for (size_t i = 0; i < ELEMENTSOF(host); i++)
                phases[k++] = (Phase) { .name = host[i].name,
                                        .start_usec = host[i].start,
                                        .duration_usec = host[i].duration };
        for (size_t i = 0; i < n; i++) {
                uint64_t at = 4130000 + i * 1000;
                uint64_t lengths[MACHINE_PHASES] = { 4375000 - at, 4100000, 150000 + i * 2000, 120000 };

                snprintf(names[i], sizeof(names[i]), "machine%zu", i);
                machines[i] = (MachineReport) { .machine = names[i] };
                for (size_t p = 0; p < MACHINE_PHASES; p++) {
                        phases[k++] = (Phase) { .name = own[p],
                                                .machine = names[i],
                                                .start_usec = at,
                                                .duration_usec = lengths[p] };
                        at += lengths[p];
                        machines[i].blackout_usec += lengths[p];
                }
        }
        return (Report) {
                .update_id = "0123456789abcdef0123456789abcdef",
                .result = "done",
                .from_kernel = "7.3.4-luvfio-a",
                .to_kernel = "7.3.4-luvfio-b",
                .clock = "tsc",
                .started_realtime_usec = 1700000000000000,
                .machines = machines,
                .n_machines = n,
                .phases = phases,
                .n_phases = k,
        };
}

START_TEST(test_machines)
{
        static const size_t sizes[] = { 0, 1, 4, MACHINES_MAX };

        for (size_t i = 0; i < ELEMENTSOF(sizes); i++) {
                MachineReport machines[MACHINES_MAX];
                Phase phases[10 + MACHINES_MAX * MACHINE_PHASES];
                char names[MACHINES_MAX][32];
                Report r = make(sizes[i], machines, phases, names);
                _cleanup_free_ char *svg = draw(&r);
                const char *dump = getenv("TEST_CTL_SVG_DUMP");

                /* Lanes: the host's once or twice, each machine's, with its ground. */
                ck_assert_uint_eq(count(svg, "class=\"name\""), sizes[i] == 0 ? 1 : sizes[i] + 2);
                ck_assert_uint_eq(count(svg, "class=\"blackout\""), sizes[i] == 0 ? 0 : sizes[i] + 1);
                ck_assert_uint_ge(count(svg, "class=\"tick\""), sizes[i] == 0 ? 4 : 8);
                ck_assert_ptr_null(strstr(svg, "<script"));
                ck_assert_ptr_null(strstr(svg, "href"));
                ck_assert_ptr_nonnull(strstr(svg, "7.3.4-luvfio-b"));
                /* To be looked at. */
                if (dump) {
                        _cleanup_free_ char *path = luv_strf("%s/timeline-%zu.svg", dump, sizes[i]);
                        _cleanup_fclose_ FILE *f = fopen(path, "we");

                        ck_assert_ptr_nonnull(f);
                        fputs(svg, f);
                }
        }
}
END_TEST

START_TEST(test_hostile)
{
        MachineReport machines[] = {
                { .machine = "</text><script>alert(1)</script>", .blackout_usec = 1000 },
                { .machine = "\"'&<>]]>&amp;",
                  .blackout_usec = CTL_UNSET,
                  .stranded_reason = "<b>\x01\x1b[2J\xff\xef\xbf\xbf</b>" },
                { .machine = "", .blackout_usec = UINT64_MAX - 1 },
        };
        Phase phases[] = {
                { .name = "\" onload=\"alert(1)", .start_usec = 0, .duration_usec = 10 },
                { .name = "<kernel/>", .start_usec = UINT64_MAX, .duration_usec = UINT64_MAX },
                { .name = "&",
                  .machine = "</text><script>alert(1)</script>",
                  .start_usec = 5,
                  .duration_usec = 0 },
                { .name = "resume", .machine = "", .start_usec = 1, .duration_usec = UINT64_MAX },
        };
        Report r = {
                .update_id = "<!--",
                .result = "]]>",
                .reason = "-->",
                .from_kernel = "<?xml?>",
                .to_kernel = "\xf0\x9f\x90\xa7",
                .clock = "&",
                .started_realtime_usec = UINT64_MAX,
                .machines = machines,
                .n_machines = ELEMENTSOF(machines),
                .phases = phases,
                .n_phases = ELEMENTSOF(phases),
        };
        _cleanup_free_ char *svg = draw(&r);

        ck_assert_ptr_null(strstr(svg, "<script"));
        ck_assert_ptr_null(strstr(svg, "\" onload"));
}
END_TEST

START_TEST(test_nothing)
{
        Phase nothing = { .name = "checking" };
        MachineReport machine = { .machine = "m", .blackout_usec = CTL_UNSET };
        Report r = {
                .update_id = "x", .result = "aborted", .reason = "why", .from_kernel = "a", .clock = "none"
        };
        _cleanup_free_ char *empty = draw(&r), *still = NULL, *lone = NULL;

        r.phases = &nothing;
        r.n_phases = 1;
        still = draw(&r);
        r.machines = &machine;
        r.n_machines = 1;
        lone = draw(&r);
        ck_assert_ptr_nonnull(strstr(empty, "aborted"));
}
END_TEST

START_TEST(test_escape)
{
        _cleanup_free_ char *text = NULL;
        size_t size;
        FILE *f = open_memstream(&text, &size);

        ck_assert_ptr_nonnull(f);
        ctl_svg_escape(f, "a<b>&\"'", 0);
        fputc('|', f);
        ctl_svg_escape(f,
                       "gr\xc3\xbc\xc3\x9f"
                       "e",
                       3);
        fputc('|', f);
        ctl_svg_escape(f, "gr\xc3\xbc", 3);
        ck_assert_int_eq(fclose(f), 0);
        ck_assert_str_eq(text, "a&lt;b&gt;&amp;&quot;&#39;|gr\xe2\x80\xa6|gr\xc3\xbc");
}
END_TEST

int main(void)
{
        Suite *s = suite_create("ctl-svg");
        TCase *t = tcase_create("all");
        SRunner *r;
        int failed;

        tcase_set_timeout(t, 60);
        tcase_add_test(t, test_machines);
        tcase_add_test(t, test_hostile);
        tcase_add_test(t, test_nothing);
        tcase_add_test(t, test_escape);
        suite_add_tcase(s, t);
        r = srunner_create(s);
        srunner_set_tap(r, "-");
        srunner_run_all(r, CK_SILENT);
        failed = srunner_ntests_failed(r);
        srunner_free(r);
        return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
