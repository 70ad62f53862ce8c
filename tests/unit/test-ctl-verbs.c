/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <check.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "ctl/ctl.h"
#include "util/io.h"
#include "util/string-util.h"

/* luvfioctl's verbs against a server that says what it was told to say, in a process of its own. */

#define REPLIES_MAX 6
#define LOG_MAX 65536

typedef struct Line {
        const char *method;
        const char *replies[REPLIES_MAX]; /* JSON; the last one is final unless `more` */
        const char *error;                /* after the replies; its parameters are error_parameters */
        const char *error_parameters;
        bool more;    /* the method does not end */
        bool hang_up; /* after the replies */
        bool authenticate;
} Line;

typedef struct Server {
        char directory[32];
        char *socket;
        int log_fd; /* what the server heard: a line for each call */
        pid_t pid;
} Server;

typedef struct Outcome {
        ExitCode code;
        char *out, *err, *heard;
} Outcome;

static sd_json_variant *json(const char *text)
{
        sd_json_variant *v = NULL;

        ck_assert_int_ge(sd_json_parse(text, 0, &v, NULL, NULL), 0);
        return v;
}

static const Line *script;
static int heard_fd;

static int answer(sd_varlink *link, sd_json_variant *parameters, const char *method)
{
        const Line *line = script;
        _cleanup_free_ char *text = NULL;
        unsigned fds = 0;

        while (line->method && !streq(line->method, method))
                line++;
        if (!line->method)
                return sd_varlink_error(link, SD_VARLINK_ERROR_METHOD_NOT_IMPLEMENTED, NULL);

        for (int fd; (fd = sd_varlink_peek_fd(link, fds)) >= 0; fds++) {
                struct stat st;

                assert(fstat(fd, &st) >= 0 && S_ISREG(st.st_mode));
        }
        assert(sd_json_variant_format(parameters, 0, &text) >= 0);
        dprintf(heard_fd, "%s %s fds=%u\n", line->method, text, fds);

        if (line->authenticate && !sd_json_variant_by_key(parameters, "allowInteractiveAuthentication"))
                return sd_varlink_error(link, SD_VARLINK_ERROR_INTERACTIVE_AUTHENTICATION_REQUIRED, NULL);
        for (size_t i = 0; i < REPLIES_MAX && line->replies[i]; i++) {
                _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = json(line->replies[i]);
                bool last = (i + 1 == REPLIES_MAX || !line->replies[i + 1]) && !line->more && !line->error &&
                            !line->hang_up;
                int r = last ? sd_varlink_reply(link, v) : sd_varlink_notify(link, v);

                assert(r >= 0);
        }
        if (line->error) {
                _cleanup_(sd_json_variant_unrefp) sd_json_variant *v =
                                json(line->error_parameters ? line->error_parameters : "{}");

                return sd_varlink_error(link, line->error, v);
        }
        if (line->hang_up) {
                assert(sd_varlink_flush(link) >= 0);
                return sd_varlink_close(link);
        }
        return 0;
}

static int on_connect(sd_varlink_server *s, sd_varlink *link, void *userdata)
{
        /* Never given back: later versions drop a link that waits for an answer and that nobody keeps. */
        return sd_varlink_set_allow_fd_passing_input(sd_varlink_ref(link), true);
}

/* The method's name does not reach a callback, so each has its own. */
#define METHOD(name)                                                                                        \
        static int on_##name(sd_varlink *link, sd_json_variant *parameters,                                 \
                             sd_varlink_method_flags_t flags, void *userdata)                               \
        {                                                                                                   \
                return answer(link, parameters, #name);                                                     \
        }                                                                                                   \
        struct swallow_semicolon

METHOD(Describe);
METHOD(Check);
METHOD(Stage);
METHOD(Update);
METHOD(Abort);
METHOD(Monitor);
METHOD(ListMachines);
METHOD(ListDevices);
METHOD(History);
METHOD(Analyze);
METHOD(Discard);
METHOD(Inhibit);

#define BIND(name) "org.luvfio.Host." #name, on_##name

static void serve(const char *path, int ready_fd)
{
        sd_varlink_server *s = NULL;
        sd_event *event = NULL;
        int r;

        (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
        r = sd_varlink_server_new(&s, 0);
        if (r >= 0)
                r = sd_varlink_server_bind_method_many(s, BIND(Describe), BIND(Check), BIND(Stage),
                                                       BIND(Update), BIND(Abort), BIND(Monitor),
                                                       BIND(ListMachines), BIND(ListDevices), BIND(History),
                                                       BIND(Analyze), BIND(Discard), BIND(Inhibit));
        if (r >= 0)
                r = sd_varlink_server_bind_connect(s, on_connect);
        if (r >= 0)
                r = sd_varlink_server_listen_address(s, path, 0600);
        if (r >= 0)
                r = sd_event_new(&event);
        if (r >= 0)
                r = sd_varlink_server_attach_event(s, event, 0);
        safe_close(ready_fd);
        if (r >= 0)
                r = sd_event_loop(event);
        _exit(r < 0);
}

static void server_start(Server *s, const Line *lines)
{
        int ready[2], heard[2];
        char byte;

        *s = (Server) { .directory = "/tmp/test-ctl.XXXXXX" };
        ck_assert_ptr_nonnull(mkdtemp(s->directory));
        s->socket = luv_strf("%s/socket", s->directory);
        ck_assert_ptr_nonnull(s->socket);
        ck_assert_int_eq(pipe2(ready, O_CLOEXEC), 0);
        ck_assert_int_eq(pipe2(heard, O_CLOEXEC | O_NONBLOCK), 0);
        s->pid = fork();
        ck_assert_int_ge(s->pid, 0);
        if (s->pid == 0) {
                script = lines;
                heard_fd = heard[1];
                safe_close(ready[0]);
                serve(s->socket, ready[1]);
        }
        safe_close(ready[1]);
        safe_close(heard[1]);
        s->log_fd = heard[0];
        ck_assert_int_eq(read(ready[0], &byte, 1), 0);
        safe_close(ready[0]);
}

/* Ends it and gives what it heard. */
static char *server_stop(Server *s)
{
        char *heard = NULL;

        ck_assert_int_eq(kill(s->pid, SIGKILL), 0);
        ck_assert_int_eq(waitpid(s->pid, NULL, 0), s->pid);
        ck_assert_int_eq(luv_read_fd(s->log_fd, LOG_MAX, &heard, NULL), 0);
        safe_close(s->log_fd);
        (void) unlink(s->socket);
        (void) rmdir(s->directory);
        free(s->socket);
        return heard;
}

static void outcome_done(Outcome *o)
{
        free(o->out);
        free(o->err);
        free(o->heard);
}

static Outcome run(const char *socket, char *const *arguments)
{
        char *argv[16] = { (char *) "luvfioctl", (char *) "--socket", (char *) socket };
        _cleanup_free_ char *reason = NULL;
        _cleanup_(ctl_done) Ctl c = {};
        Outcome o = {};
        size_t out_size, err_size;
        int argc = 3;

        for (; arguments[argc - 3]; argc++) {
                ck_assert_int_lt(argc, 15);
                argv[argc] = arguments[argc - 3];
        }
        c.out = (Terminal) { .f = open_memstream(&o.out, &out_size), .columns = 80 };
        c.err = (Terminal) { .f = open_memstream(&o.err, &err_size), .columns = 80 };
        ck_assert(c.out.f && c.err.f);
        ck_assert_msg(ctl_parse_arguments(argc, argv, false, &c.options, &reason) == 0, "%s",
                      strempty(reason));
        o.code = ctl_run(&c);
        ck_assert_int_eq(fclose(c.out.f), 0);
        ck_assert_int_eq(fclose(c.err.f), 0);
        return o;
}

/* luvfioctl ARGUMENTS... while the server answers as LINES say. */
static Outcome play(const Line *lines, char *const *arguments)
{
        Server s;
        Outcome o;

        server_start(&s, lines);
        o = run(s.socket, arguments);
        o.heard = server_stop(&s);
        return o;
}

#define PLAY(lines, ...) play((lines), (char *const *) (const char *[]) { __VA_ARGS__, NULL })
#define LINES(...) ((const Line[]) { __VA_ARGS__, {} })

#define HAS(text, part) ck_assert_msg(strstr((text), (part)) != NULL, "'%s' is not in: %s", (part), (text))
#define CODE(o, expected)                                                                                   \
        ck_assert_msg((o).code == (expected), "exit code %d instead of %d: %s%s", (o).code, (expected),     \
                      (o).out, (o).err)

#define REPORT(result, more)                                                                                \
        "{\"updateId\":\"0123456789abcdef0123456789abcdef\",\"result\":\"" result "\","                     \
        "\"startedRealtimeUSec\":1700000000000000,\"fromKernel\":\"a\",\"toKernel\":\"b\",\"clock\":"       \
        "\"tsc\","                                                                                          \
        "\"machines\":[{\"machine\":\"m1\",\"blackoutUSec\":4000000" more "}],"                             \
        "\"phases\":[{\"name\":\"stop\",\"machine\":\"m1\",\"startUSec\":1,\"durationUSec\":4000000}]}"

#define DESCRIPTION                                                                                         \
        "{\"version\":\"1\",\"backend\":\"simulated\",\"kernel\":\"7.3\",\"state\":\"idle\","               \
        "\"promises\":[{\"kind\":\"memfd\",\"outcome\":\"preserved\"}],\"machines\":1,\"stranded\":0,"      \
        "\"lastUpdate\":" REPORT("done", "") "}"

#define MACHINES                                                                                            \
        "{\"machines\":[{\"name\":\"m1\",\"state\":\"running\",\"uid\":0,\"attached\":true,\"generation\":" \
        "2,"                                                                                                \
        "\"fileDescriptors\":3,\"memoryBytes\":268435456,\"devices\":[\"0000:00:03.0\"],\"pid\":7}]}"

START_TEST(test_status)
{
        const Line *lines = LINES({ .method = "Describe", .replies = { DESCRIPTION } },
                                  { .method = "ListMachines", .replies = { MACHINES } });
        _cleanup_(outcome_done) Outcome o = PLAY(lines, "status"), j = PLAY(lines, "--json=short");

        CODE(o, CTL_DONE);
        HAS(o.out, "State: idle, no update");
        HAS(o.out, "memfd preserved");
        HAS(o.out, "256 MiB");
        CODE(j, CTL_DONE);
        ck_assert_str_eq(j.out, DESCRIPTION "\n");
        ck_assert_str_eq(j.heard, "Describe {} fds=0\n");
}
END_TEST

START_TEST(test_lists)
{
        const Line *lines =
                        LINES({ .method = "ListMachines", .replies = { "{\"machines\":[]}" } },
                              { .method = "ListDevices",
                                .replies = { "{\"devices\":[{\"address\":\"0000:00:03.0\",\"promise\":"
                                             "\"reset\"},{\"address\":\"0000:00:04.0\",\"promise\":"
                                             "\"running\",\"kernelState\":\"incoming\",\"blockedBy\":"
                                             "\"session\",\"preserved\":[\"owner\",\"dma\"],"
                                             "\"notPreserved\":[\"iommu\"]},{\"address\":"
                                             "\"0000:00:05.0\",\"kernelState\":\"finished\","
                                             "\"preserved\":null,\"notPreserved\":[]}]}" } },
                              { .method = "History",
                                .replies = { "{\"updates\":[" REPORT("done", "") "]}" } },
                              { .method = "Analyze", .replies = { "{\"report\":" REPORT("done", "") "}" } },
                              { .method = "Discard", .replies = { "{}" } },
                              { .method = "Abort", .replies = { "{}" } });
        _cleanup_(outcome_done) Outcome machines = PLAY(lines, "machines"), devices = PLAY(lines, "devices"),
                                        history = PLAY(lines, "history", "--lines=5"),
                                        analysis = PLAY(lines, "analyze"),
                                        cut = PLAY(lines, "analyze", "01234567", "--svg=-"),
                                        no_such = PLAY(lines, "analyze", "89abcdef"),
                                        discard = PLAY(lines, "discard", "m1"),
                                        aborted = PLAY(lines, "abort", "--json");

        CODE(machines, CTL_DONE);
        HAS(machines.out, "No machines");
        CODE(devices, CTL_DONE);
        HAS(devices.out, "reset");
        HAS(devices.out, "PRESERVED   NOT PRESERVED");
        HAS(devices.out, "incoming, blocked by session  owner, dma  iommu");
        HAS(devices.out, "finished");
        CODE(history, CTL_DONE);
        HAS(history.out, "0123456789ab  2023-");
        ck_assert_str_eq(history.heard, "History {\"limit\":5} fds=0\n");
        CODE(analysis, CTL_DONE);
        HAS(analysis.out, "blackout");
        CODE(cut, CTL_DONE);
        HAS(cut.heard, "Analyze {\"updateId\":\"0123456789abcdef0123456789abcdef\"}");
        ck_assert_int_eq(strncmp(cut.out, "<?xml", 5), 0);
        CODE(no_such, CTL_FAILED);
        HAS(no_such.err, "'89abcdef'");
        CODE(discard, CTL_DONE);
        HAS(discard.heard, "Discard {\"machine\":\"m1\"}");
        CODE(aborted, CTL_DONE);
        ck_assert_str_eq(aborted.out, "{}\n");
}
END_TEST

START_TEST(test_svg_file)
{
        const Line *lines =
                        LINES({ .method = "Analyze", .replies = { "{\"report\":" REPORT("done", "") "}" } });
        char path[] = "/tmp/test-ctl.XXXXXX";
        _cleanup_close_ int fd = mkostemp(path, O_CLOEXEC);
        _cleanup_free_ char *option = luv_strf("--svg=%s", path), *svg = NULL;
        _cleanup_(outcome_done) Outcome o = PLAY(lines, "analyze", option),
                                        lost = PLAY(lines, "analyze", "--svg=/nonexistent/x.svg");

        CODE(o, CTL_DONE);
        HAS(o.out, "blackout");
        ck_assert_int_eq(luv_read_file(AT_FDCWD, path, 1 << 20, &svg, NULL), 0);
        ck_assert_int_eq(strncmp(svg, "<?xml", 5), 0);
        CODE(lost, CTL_FAILED);
        HAS(lost.err, "/nonexistent/x.svg");
        ck_assert_int_eq(unlink(path), 0);
}
END_TEST

START_TEST(test_check)
{
        const Line *ready = LINES({ .method = "Check", .replies = { "{\"ready\":true,\"findings\":[]}" } });
        const Line *blocked =
                        LINES({ .method = "Check",
                                .replies = { "{\"ready\":false,\"findings\":[{\"id\":\"x-y\",\"severity\":"
                                             "\"blocker\",\"message\":\"M.\",\"remedy\":\"R.\"}]}" } });
        _cleanup_(outcome_done) Outcome yes = PLAY(ready, "check", "/proc/self/exe",
                                                   "--initrd=/proc/self/exe", "--cmdline=c"),
                                        no = PLAY(blocked, "check"), j = PLAY(blocked, "check", "-j"),
                                        lost = PLAY(ready, "check", "/nonexistent"),
                                        folder = PLAY(ready, "check", "/");

        CODE(yes, CTL_DONE);
        HAS(yes.out, "Ready");
        ck_assert_str_eq(yes.heard, "Check "
                                    "{\"kernelFileDescriptor\":0,\"initrdFileDescriptor\":1,\"commandLine\":"
                                    "\"c\"} fds=2\n");
        CODE(no, CTL_BLOCKED);
        HAS(no.out, "Remedy: R.");
        CODE(j, CTL_BLOCKED);
        HAS(j.out, "\"ready\":false");
        CODE(lost, CTL_FAILED);
        HAS(lost.err, "/nonexistent");
        ck_assert_str_eq(lost.heard, "");
        CODE(folder, CTL_FAILED);
}
END_TEST

#define PROGRESS(state) "{\"state\":\"" state "\"}"

START_TEST(test_update)
{
        const Line *gone = LINES({ .method = "Update",
                                   .replies = { PROGRESS("checking"),
                                                "{\"state\":\"staging\",\"message\":\"loading\"}",
                                                "{\"state\":\"quiescing\",\"machine\":\"m1\","
                                                "\"machineState\":\"quiesced\",\"done\":1,\"total\":1}",
                                                PROGRESS("handing_over") },
                                   .hang_up = true });
        const Line *early =
                        LINES({ .method = "Update", .replies = { PROGRESS("staging") }, .hang_up = true });
        const Line *stranded = LINES({ .method = "Update",
                                       .replies = { "{\"state\":\"idle\",\"report\":" REPORT(
                                                       "stranded", ",\"strandedReason\":\"W\"") "}" } });
        const Line *done =
                        LINES({ .method = "Update",
                                .replies = { "{\"state\":\"idle\",\"report\":" REPORT("done", "") "}" } });
        const Line *dry =
                        LINES({ .method = "Update", .replies = { PROGRESS("checking"), PROGRESS("idle") } });
        _cleanup_(outcome_done) Outcome o = PLAY(gone, "update", "/proc/self/exe", "--sacrifice=m2",
                                                 "--deadline=3", "--fallback=none"),
                                        j = PLAY(gone, "update", "--json"),
                                        q = PLAY(gone, "update", "--json=seq"), e = PLAY(early, "update"),
                                        s = PLAY(stranded, "update"), d = PLAY(done, "update"),
                                        n = PLAY(dry, "update", "--dry-run");

        CODE(o, CTL_DONE);
        HAS(o.out, "looking for blockers");
        HAS(o.out, "loading");
        HAS(o.out, "m1: quiesced (1 of 1)");
        HAS(o.out, "luvfioctl history");
        ck_assert_str_eq(
                        o.heard,
                        "Update {\"kernelFileDescriptor\":0,\"sacrifice\":[\"m2\"],\"deadlineUSec\":3000000,"
                        "\"fallback\":\"none\"} fds=1\n");
        CODE(j, CTL_DONE);
        HAS(j.out, PROGRESS("checking") "\n{");
        HAS(j.out, PROGRESS("handing_over") "\n");
        ck_assert_str_eq(j.heard, "Update {} fds=0\n");
        CODE(q, CTL_DONE);
        HAS(q.out, "\x1e" PROGRESS("checking") "\n\x1e");
        CODE(e, CTL_UNREACHABLE);
        HAS(e.err, "staging");
        CODE(s, CTL_STRANDED);
        HAS(s.out, "m1: W");
        CODE(d, CTL_DONE);
        HAS(d.out, "4.00 s");
        CODE(n, CTL_DONE);
        HAS(n.out, "Dry run");
        ck_assert_str_eq(n.heard, "Update {\"dryRun\":true} fds=0\n");
}
END_TEST

START_TEST(test_stage)
{
        const Line *lines =
                        LINES({ .method = "Stage", .replies = { PROGRESS("staging"), PROGRESS("staged") } });
        _cleanup_(outcome_done) Outcome o = PLAY(lines, "stage", "/proc/self/exe");

        CODE(o, CTL_DONE);
        HAS(o.out, "luvfioctl update");
        HAS(o.heard, "fds=1");
}
END_TEST

START_TEST(test_errors)
{
        static const struct {
                const char *error, *parameters;
                ExitCode code;
                const char *text;
        } errors[] = {
                { "org.luvfio.Host.Blocked",
                  "{\"findings\":[{\"id\":\"x-y\",\"severity\":\"blocker\",\"message\":\"M.\"}]}",
                  CTL_BLOCKED, "x-y" },
                { "org.luvfio.Host.Blocked", "{\"findings\":7}", CTL_FAILED, "findings" },
                { "org.luvfio.Host.UpdateFailed",
                  "{\"state\":\"quiescing\",\"reason\":\"it is late\",\"machine\":\"m1\"}", CTL_ABORTED,
                  "quiescing, at machine m1: it is late; all machines run on." },
                { "org.luvfio.Host.UpdateFailed", "{\"state\":3,\"reason\":[]}", CTL_ABORTED, "Given up" },
                { "org.luvfio.Host.UpdateInProgress", "{\"updateId\":\"x\",\"state\":\"draining\"}",
                  CTL_FAILED, "draining" },
                { "org.luvfio.Host.NotPossible", "{\"state\":\"idle\"}", CTL_FAILED, "idle" },
                { "org.luvfio.Host.BadKernel", "{\"reason\":\"it is a \\u001b[2Jpoem\"}", CTL_FAILED,
                  "a \\x1b[2Jpoem" },
                { "org.luvfio.Host.NoKernel", NULL, CTL_FAILED, "No kernel" },
                { "org.luvfio.Host.Novel", NULL, CTL_FAILED, "org.luvfio.Host.Novel" },
                { "org.varlink.service.PermissionDenied", NULL, CTL_FORBIDDEN, "polkit" },
                { "org.varlink.service.InvalidParameter", "{\"parameter\":\"deadlineUSec\"}", CTL_FAILED,
                  "deadlineUSec" },
                { "org.varlink.service.MethodNotFound", "{\"method\":\"m\"}", CTL_FAILED, "'m'" },
                { "io.systemd.InteractiveAuthenticationRequired", NULL, CTL_FORBIDDEN, "authentication" },
                { "io.systemd.System", "{\"errno\":28,\"origin\":\"linux\"}", CTL_FAILED, "No space left" },
                { "io.systemd.System", "{\"errno\":-1}", CTL_FAILED, "luvfiod failed." },
        };

        for (size_t i = 0; i < ELEMENTSOF(errors); i++) {
                const Line *lines = LINES({ .method = "Update",
                                            .replies = { PROGRESS("checking") },
                                            .error = errors[i].error,
                                            .error_parameters = errors[i].parameters },
                                          { .method = "Abort",
                                            .error = errors[i].error,
                                            .error_parameters = errors[i].parameters });
                _cleanup_(outcome_done) Outcome update = PLAY(lines, "update"), abort = PLAY(lines, "abort"),
                                                j = PLAY(lines, "abort", "-j");
                _cleanup_free_ char *both = luv_strf("%s%s", abort.out, abort.err),
                                    *member = luv_strf("\"error\":\"%s\"", errors[i].error);

                CODE(update, errors[i].code);
                CODE(abort, errors[i].code);
                HAS(both, errors[i].text);
                HAS(j.out, member);
        }
}
END_TEST

START_TEST(test_authentication)
{
        const Line *lines =
                        LINES({ .method = "Abort", .replies = { "{}" }, .authenticate = true },
                              { .method = "Update", .replies = { PROGRESS("idle") }, .authenticate = true });
        _cleanup_(outcome_done) Outcome asked = PLAY(lines, "abort"),
                                        not_asked = PLAY(lines, "abort", "--no-ask-password"),
                                        update = PLAY(lines, "update", "/proc/self/exe");

        CODE(asked, CTL_DONE);
        ck_assert_str_eq(asked.heard,
                         "Abort {} fds=0\nAbort {\"allowInteractiveAuthentication\":true} fds=0\n");
        CODE(not_asked, CTL_FORBIDDEN);
        ck_assert_str_eq(not_asked.heard, "Abort {} fds=0\n");
        CODE(update, CTL_DONE);
        ck_assert_str_eq(update.heard,
                         "Update {\"kernelFileDescriptor\":0} fds=1\n"
                         "Update {\"kernelFileDescriptor\":0,\"allowInteractiveAuthentication\":true} "
                         "fds=1\n");
}
END_TEST

/* A server that answers nonsense is reported; nobody crashes. */
START_TEST(test_nonsense)
{
        static const char *const replies[] = {
                "{}",
                "{\"machines\":{}}",
                "{\"machines\":[[]]}",
                "{\"state\":[]}",
                "{\"ready\":\"yes\"}",
                "{\"findings\":null,\"ready\":true}",
        };
        static const char *const verbs[] = { "status",  "check",   "stage",   "update", "machines",
                                             "devices", "monitor", "history", "analyze" };

        for (size_t i = 0; i < ELEMENTSOF(replies); i++) {
                const Line *lines = LINES({ "Describe", { replies[i] } }, { "Check", { replies[i] } },
                                          { "Stage", { replies[i] } }, { "Update", { replies[i] } },
                                          { "ListMachines", { replies[i] } },
                                          { "ListDevices", { replies[i] } }, { "Monitor", { replies[i] } },
                                          { "History", { replies[i] } }, { "Analyze", { replies[i] } });
                Server s;
                _cleanup_free_ char *heard = NULL;

                server_start(&s, lines);
                for (size_t k = 0; k < ELEMENTSOF(verbs); k++) {
                        _cleanup_(outcome_done) Outcome o =
                                        run(s.socket, (char *const *) (const char *[]) { verbs[k], NULL });

                        CODE(o, CTL_FAILED);
                        HAS(o.err, "does not speak as luvfiod does");
                }
                heard = server_stop(&s);
        }
}
END_TEST

START_TEST(test_monitor)
{
        const Line *jump = LINES({ .method = "Monitor",
                                   .replies = { PROGRESS("idle"),
                                                "{\"state\":\"idle\",\"report\":" REPORT("aborted", "") "}",
                                                PROGRESS("handing_over") },
                                   .hang_up = true });
        const Line *lost = LINES({ .method = "Monitor", .replies = { PROGRESS("idle") }, .hang_up = true });
        _cleanup_(outcome_done) Outcome o = PLAY(jump, "monitor"), l = PLAY(lost, "monitor");

        CODE(o, CTL_DONE);
        HAS(o.out, "aborted");
        HAS(o.out, "handing_over");
        CODE(l, CTL_UNREACHABLE);
}
END_TEST

START_TEST(test_inhibit)
{
        const Line *lines = LINES({ .method = "Inhibit", .replies = { "{}" }, .more = true });
        const Line *lost = LINES({ .method = "Inhibit", .replies = { "{}" }, .hang_up = true });
        _cleanup_(outcome_done) Outcome good = PLAY(lines, "inhibit", "--who=w", "--why=y", "true"),
                                        bad = PLAY(lines, "inhibit", "--why=y", "--", "sh", "-c", "exit 9"),
                                        killed = PLAY(lines, "inhibit", "sh", "-c", "kill -9 $$"),
                                        none = PLAY(lines, "inhibit", "/nonexistent/command"),
                                        back = PLAY(lost, "inhibit", "--who=w", "--why=y", "sleep", "1.5");

        CODE(good, CTL_DONE);
        ck_assert_str_eq(good.heard, "Inhibit {\"who\":\"w\",\"why\":\"y\"} fds=0\n");
        ck_assert_int_eq(bad.code, 9);
        ck_assert_int_eq(killed.code, 128 + 9);
        HAS(killed.heard, "\"why\":\"runs sh -c kill -9 $$\"");
        CODE(none, CTL_FAILED);
        HAS(none.err, "/nonexistent/command");
        /* Taken again when it was lost. */
        CODE(back, CTL_DONE);
        HAS(back.heard, "Inhibit {\"who\":\"w\",\"why\":\"y\"} fds=0\nInhibit");
        HAS(back.err, "inhibited again");
}
END_TEST

START_TEST(test_unreachable)
{
        _cleanup_(outcome_done) Outcome o = run("/nonexistent/socket",
                                                (char *const *) (const char *[]) { "status", NULL }),
                                        relative = run("nonexistent",
                                                       (char *const *) (const char *[]) { "update", NULL }),
                                        url = run("exec:/bin/false",
                                                  (char *const *) (const char *[]) { "status", NULL });

        CODE(o, CTL_UNREACHABLE);
        HAS(o.err, "/nonexistent/socket");
        CODE(relative, CTL_UNREACHABLE);
        CODE(url, CTL_UNREACHABLE);
}
END_TEST

int main(void)
{
        Suite *s = suite_create("ctl-verbs");
        TCase *t = tcase_create("all");
        SRunner *r;
        int failed;

        tcase_set_timeout(t, 60);
        tcase_add_test(t, test_status);
        tcase_add_test(t, test_lists);
        tcase_add_test(t, test_svg_file);
        tcase_add_test(t, test_check);
        tcase_add_test(t, test_update);
        tcase_add_test(t, test_stage);
        tcase_add_test(t, test_errors);
        tcase_add_test(t, test_authentication);
        tcase_add_test(t, test_nonsense);
        tcase_add_test(t, test_monitor);
        tcase_add_test(t, test_inhibit);
        tcase_add_test(t, test_unreachable);
        suite_add_tcase(s, t);
        r = srunner_create(s);
        srunner_set_tap(r, "-");
        srunner_run_all(r, CK_SILENT);
        failed = srunner_ntests_failed(r);
        srunner_free(r);
        return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
