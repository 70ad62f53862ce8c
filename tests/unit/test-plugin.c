/* SPDX-License-Identifier: LGPL-2.1-or-later */

/*
 * luvfiod's side of the plugins, against the real luvfio-plugin-host with the null plugin, and against
 * sockets that misbehave. $LUVFIO_TEST_PLUGIN_HOST and $LUVFIO_PLUGIN_DIR say where they are.
 */

#include <check.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "plugin/plugin-client.h"
#include "util/io.h"
#include "util/string-util.h"
#include "util/time-util.h"

#define DEVICE "0000:03:00.0"
#define OTHER "0000:04:00.0"
#define PLAN "null 1 " DEVICE
#define SOON (200 * USEC_PER_MSEC)
#define LATE (20 * USEC_PER_SEC)

static char folder[64], config_path[128], sockets[128];
static sd_event *event;
static PluginManager *manager;
static pid_t host_pid;
/* Of the devices that are asked about. */
static uint64_t preserved = FD_PRESERVED_UNKNOWN;

/* What a callback was given. */
typedef struct Answer {
        unsigned n;
        int error;
        char *reason, *plugin, *promise, *plan, *finding;
        size_t n_findings;
        PluginCall *free_in_callback;
} Answer;

static void answer_done(Answer *a)
{
        free(a->reason);
        free(a->plugin);
        free(a->promise);
        free(a->plan);
        free(a->finding);
}
#define _cleanup_answer_ _cleanup_(answer_done)

static char *copy(const char *s)
{
        return s ? strdup(s) : NULL;
}

static void on_done(const PluginResult *result, void *userdata)
{
        Answer *a = userdata;

        a->n++;
        luv_plugin_call_free(a->free_in_callback);
        a->error = result->error;
        a->reason = copy(result->reason);
        a->plugin = copy(result->plugin);
        a->promise = copy(result->promise);
        a->plan = copy(result->plan);
        a->n_findings = result->n_findings;
        if (result->n_findings > 0)
                a->finding = luv_strf("%s:%s:%s", result->findings[0].severity, result->findings[0].id,
                                      result->findings[0].message);
}

static void run_until(const unsigned *n, unsigned wanted)
{
        uint64_t end = luv_now_usec() + LATE;

        while (*n < wanted) {
                ck_assert(luv_now_usec() < end);
                ck_assert_int_ge(sd_event_run(event, USEC_PER_SEC), 0);
        }
}

static PluginCall *start(PluginOp op, const char *device, uint64_t timeout, Answer *a)
{
        PluginCall *c = NULL;

        ck_assert_int_eq(luv_plugin_call(manager, op, op == PLUGIN_OP_MATCH ? NULL : "null", device,
                                         op >= PLUGIN_OP_REBIND ? PLAN : NULL, preserved,
                                         luv_now_usec() + timeout, on_done, a, &c),
                         0);
        ck_assert_uint_eq(a->n, 0);
        return c;
}

static void call(PluginOp op, const char *device, uint64_t timeout, Answer *a)
{
        _cleanup_(luv_plugin_call_freep) PluginCall *c = start(op, device, timeout, a);

        run_until(&a->n, 1);
        /* Not a second time. */
        ck_assert_int_ge(sd_event_run(event, 0), 0);
        ck_assert_uint_eq(a->n, 1);
}

static void configure(const char *text)
{
        ck_assert_int_eq(luv_write_file_atomic(AT_FDCWD, config_path, text, strlen(text), 0600), 0);
}

static void use_spawn(void)
{
        char *plugins[] = { (char *) "null", NULL };

        luv_plugin_manager_unref(manager);
        ck_assert_int_eq(luv_plugin_manager_new(event, NULL, getenv("LUVFIO_TEST_PLUGIN_HOST"), plugins,
                                                &manager),
                         0);
}

static void setup(void)
{
        strcpy(folder, "/tmp/luvfio-test-plugin.XXXXXX");
        ck_assert_ptr_nonnull(mkdtemp(folder));
        snprintf(config_path, sizeof(config_path), "%s/null.json", folder);
        snprintf(sockets, sizeof(sockets), "%s/plugin", folder);
        ck_assert_int_eq(setenv("LUVFIO_NULL_CONFIG", config_path, 1), 0);
        ck_assert_int_eq(mkdir(sockets, 0700), 0);
        configure("{}");
        ck_assert_int_ge(sd_event_new(&event), 0);
        ck_assert_int_eq(luv_plugin_manager_new(event, sockets, NULL, NULL, &manager), 0);
}

static void teardown(void)
{
        _cleanup_free_ char *command = NULL;

        manager = luv_plugin_manager_unref(manager);
        event = sd_event_unref(event);
        if (host_pid > 0) {
                (void) kill(host_pid, SIGTERM);
                (void) waitpid(host_pid, NULL, 0);
                host_pid = 0;
        }
        command = luv_strf("rm -rf '%s'", folder);
        ck_assert_int_eq(system(command), 0);
}

static int make_address(const char *name, struct sockaddr_un *ret)
{
        *ret = (struct sockaddr_un) { .sun_family = AF_UNIX };
        snprintf(ret->sun_path, sizeof(ret->sun_path), "%.90s/%s", sockets, name);
        return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

/* That the socket is there is not enough: it is bound a moment before it is listened on. */
static bool is_served(const char *name)
{
        struct sockaddr_un address;
        _cleanup_close_ int fd = make_address(name, &address);

        return fd >= 0 && connect(fd, (struct sockaddr *) &address, sizeof(address)) >= 0;
}

/* As setup(), with a host of the null plugin that serves a socket in the folder, as a service does. */
static void setup_host(void)
{
        _cleanup_free_ char *listen_option = NULL;
        uint64_t end;

        setup();
        listen_option = luv_strf("--listen=%s/null", sockets);
        host_pid = fork();
        ck_assert_int_ge(host_pid, 0);
        if (host_pid == 0) {
                execl(getenv("LUVFIO_TEST_PLUGIN_HOST"), "luvfio-plugin-host", listen_option, "--simulate",
                      "null", (char *) NULL);
                _exit(127);
        }
        end = luv_now_usec() + LATE;
        while (!is_served("null")) {
                ck_assert(luv_now_usec() < end);
                ck_assert_int_eq(waitpid(host_pid, NULL, WNOHANG), 0);
                (void) usleep(10 * 1000);
        }
}

/* A socket in the folder that nobody serves as it should. */
static int bad_socket(const char *name, int backlog)
{
        struct sockaddr_un address;
        int fd = make_address(name, &address);

        ck_assert_int_ge(fd, 0);
        ck_assert_int_eq(bind(fd, (struct sockaddr *) &address, sizeof(address)), 0);
        if (backlog > 0)
                ck_assert_int_eq(listen(fd, backlog), 0);
        return fd;
}

START_TEST(all_operations)
{
        if (_i == 1)
                use_spawn();
        {
                _cleanup_answer_ Answer a = {};

                call(PLUGIN_OP_MATCH, DEVICE, LATE, &a);
                ck_assert_int_eq(a.error, 0);
                ck_assert_str_eq(a.plugin, "null");
                ck_assert_str_eq(a.promise, "reset");
                ck_assert_ptr_null(a.reason);
        }
        {
                _cleanup_answer_ Answer a = {};

                call(PLUGIN_OP_PREFLIGHT, DEVICE, LATE, &a);
                ck_assert_int_eq(a.error, 0);
                ck_assert_uint_eq(a.n_findings, 0);
        }
        {
                _cleanup_answer_ Answer a = {};

                call(PLUGIN_OP_PLAN, DEVICE, LATE, &a);
                ck_assert_int_eq(a.error, 0);
                ck_assert_str_eq(a.plan, PLAN);
        }
        for (PluginOp op = PLUGIN_OP_QUIESCED; op < _PLUGIN_OP_MAX; op++) {
                _cleanup_answer_ Answer a = {};

                call(op, DEVICE, LATE, &a);
                ck_assert_int_eq(a.error, 0);
                ck_assert_str_eq(a.plugin, "null");
        }
        {
                _cleanup_answer_ Answer a = {};

                /* the plan of another device */
                call(PLUGIN_OP_VERIFY, OTHER, LATE, &a);
                ck_assert_int_eq(a.error, -EREMOTEIO);
                ck_assert_str_eq(a.reason, "plugin null, verify for device " OTHER ": the plan \"" PLAN
                                           "\" is not this device's");
        }
}
END_TEST

static void fault(PluginOp op, const char *name, uint64_t timeout, Answer *a)
{
        static const char *const ops[] = { "match",  "preflight", "quiesced", "plan",
                                           "rebind", "verify",    "recover" };
        _cleanup_free_ char *text = NULL;

        text = luv_strf("{\"faults\":[{\"op\":\"%s\",\"device\":\"" DEVICE
                        "\",\"fault\":\"%s\",\"reason\":\"MSI-X is on\"}]}",
                        ops[op], name);
        configure(text);
        call(op, DEVICE, timeout, a);
        if (a->reason) {
                ck_assert_ptr_nonnull(strstr(a->reason, "plugin null"));
                ck_assert_ptr_nonnull(strstr(a->reason, DEVICE));
                ck_assert_ptr_nonnull(strstr(a->reason, ops[op]));
        }
}

/* Each operation; the host goes on, and other devices with it. */
static void other_works(PluginOp op)
{
        _cleanup_answer_ Answer a = {};

        if (op >= PLUGIN_OP_REBIND)
                return;
        call(op, OTHER, LATE, &a);
        ck_assert_int_eq(a.error, 0);
}

/* The kernel's word gets as far as the plugin, and no other number does. */
START_TEST(preserved_is_passed_on)
{
        static const struct {
                uint64_t preserved;
                const char *promise;
        } words[] = { { FD_PRESERVED_UNKNOWN, "reset" }, { 0, "reset" }, { 3, "reset" }, { 7, "running" } };

        for (size_t i = 0; i < ELEMENTSOF(words); i++) {
                _cleanup_answer_ Answer a = {};

                preserved = words[i].preserved;
                call(PLUGIN_OP_MATCH, DEVICE, LATE, &a);
                ck_assert_int_eq(a.error, 0);
                ck_assert_str_eq(a.promise, words[i].promise);
        }
        preserved = FD_PRESERVED_UNKNOWN;
}
END_TEST

START_TEST(refuses)
{
        _cleanup_answer_ Answer a = {};

        fault(_i, "refuse", LATE, &a);
        ck_assert_int_eq(a.error, -EREMOTEIO);
        ck_assert_ptr_nonnull(strstr(a.reason, ": MSI-X is on"));
        other_works(_i);
}
END_TEST

START_TEST(crashes)
{
        _cleanup_answer_ Answer a = {};

        fault(_i, "crash", LATE, &a);
        ck_assert_int_eq(a.error, -EPIPE);
        ck_assert_ptr_nonnull(strstr(a.reason, "SIGSEGV"));
        other_works(_i);
}
END_TEST

START_TEST(hangs)
{
        _cleanup_answer_ Answer a = {};
        uint64_t begin = luv_now_usec();

        fault(_i, "hang", SOON, &a);
        ck_assert_int_eq(a.error, -ETIME);
        ck_assert_uint_ge(luv_now_usec() - begin, SOON);
        ck_assert_uint_lt(luv_now_usec() - begin, LATE);
        other_works(_i);
}
END_TEST

START_TEST(lies)
{
        _cleanup_answer_ Answer a = {};

        fault(_i, "lie", LATE, &a);
        ck_assert_int_eq(a.error, 0);
        if (_i == PLUGIN_OP_MATCH)
                ck_assert_str_eq(a.promise, "latched");
        if (_i == PLUGIN_OP_PLAN)
                ck_assert_str_ne(a.plan, PLAN);
}
END_TEST

START_TEST(garbles)
{
        _cleanup_answer_ Answer a = {};

        fault(_i, "garble", LATE, &a);
        ck_assert_int_eq(a.error, -EREMOTEIO);
        other_works(_i);
}
END_TEST

START_TEST(crashes_when_spawned)
{
        _cleanup_answer_ Answer a = {};

        use_spawn();
        fault(PLUGIN_OP_QUIESCED, "crash", LATE, &a);
        ck_assert_int_eq(a.error, -EPIPE);
        ck_assert_ptr_nonnull(strstr(a.reason, "SIGSEGV"));
}
END_TEST

START_TEST(hangs_when_spawned)
{
        _cleanup_answer_ Answer a = {};

        use_spawn();
        fault(PLUGIN_OP_QUIESCED, "hang", 2 * SOON, &a);
        ck_assert_int_eq(a.error, -ETIME);
}
END_TEST

START_TEST(spawn_fails)
{
        _cleanup_answer_ Answer a = {};
        char *plugins[] = { (char *) "null", NULL };

        luv_plugin_manager_unref(manager);
        ck_assert_int_eq(luv_plugin_manager_new(event, NULL, "/nowhere/luvfio-plugin-host", plugins,
                                                &manager),
                         0);
        call(PLUGIN_OP_QUIESCED, DEVICE, LATE, &a);
        ck_assert_int_eq(a.error, -EPIPE);
}
END_TEST

START_TEST(unusable_plugin)
{
        _cleanup_answer_ Answer a = {};
        char *plugins[] = { (char *) "not-there", NULL };

        luv_plugin_manager_unref(manager);
        ck_assert_int_eq(luv_plugin_manager_new(event, NULL, getenv("LUVFIO_TEST_PLUGIN_HOST"), plugins,
                                                &manager),
                         0);
        call(PLUGIN_OP_MATCH, DEVICE, LATE, &a);
        ck_assert_int_eq(a.error, -EREMOTEIO);
        ck_assert_ptr_nonnull(strstr(a.reason, "plugin not-there cannot be loaded"));
}
END_TEST

START_TEST(findings)
{
        _cleanup_free_ char *old = NULL, *new = NULL;
        _cleanup_answer_ Answer a = {};

        /* Not in a simulation it warns. */
        (void) kill(host_pid, SIGTERM);
        (void) waitpid(host_pid, NULL, 0);
        host_pid = fork();
        if (host_pid == 0) {
                _cleanup_free_ char *option = luv_strf("--listen=%s/null2", sockets);

                execl(getenv("LUVFIO_TEST_PLUGIN_HOST"), "luvfio-plugin-host", option, "null",
                      (char *) NULL);
                _exit(127);
        }
        while (!is_served("null2"))
                (void) usleep(10 * 1000);
        old = luv_strf("%s/null", sockets);
        new = luv_strf("%s/null2", sockets);
        ck_assert_int_eq(rename(new, old), 0);
        call(PLUGIN_OP_PREFLIGHT, DEVICE, LATE, &a);
        ck_assert_int_eq(a.error, 0);
        ck_assert_uint_eq(a.n_findings, 1);
        ck_assert_str_eq(a.finding,
                         "warning:null-plugin:the null plugin answers for the device and does nothing "
                         "for it");
}
END_TEST

START_TEST(a_hang_costs_its_device_only)
{
        _cleanup_(luv_plugin_call_freep) PluginCall *c = NULL;
        _cleanup_answer_ Answer hung = {}, other = {};

        configure("{\"faults\":[{\"device\":\"" DEVICE "\",\"fault\":\"hang\"}]}");
        c = start(PLUGIN_OP_QUIESCED, DEVICE, LATE, &hung);
        call(PLUGIN_OP_QUIESCED, OTHER, LATE, &other);
        ck_assert_int_eq(other.error, 0);
        ck_assert_uint_eq(hung.n, 0);
}
END_TEST

START_TEST(many_at_once)
{
        PluginCall *calls[100] = {};
        Answer answers[ELEMENTSOF(calls)] = {};

        for (size_t i = 0; i < ELEMENTSOF(calls); i++)
                calls[i] = start(PLUGIN_OP_PLAN, DEVICE, LATE, &answers[i]);
        for (size_t i = 0; i < ELEMENTSOF(calls); i++) {
                run_until(&answers[i].n, 1);
                ck_assert_int_eq(answers[i].error, 0);
                ck_assert_str_eq(answers[i].plan, PLAN);
                luv_plugin_call_free(calls[i]);
                answer_done(&answers[i]);
        }
}
END_TEST

/* The host stops an operation that nobody waits for: the process is gone, not only forgotten. */
static unsigned count_children(pid_t pid)
{
        _cleanup_free_ char *path = luv_strf("/proc/%i/task/%i/children", (int) pid, (int) pid),
                            *text = NULL;
        unsigned n = 0;

        ck_assert_int_ge(luv_read_line_file(AT_FDCWD, path, &text), 0);
        for (const char *p = text; *p; p++)
                n += *p == ' ' || p[1] == 0;
        return n;
}

START_TEST(cancelled)
{
        Answer a = {};
        PluginCall *c;
        uint64_t end = luv_now_usec() + LATE;

        configure("{\"faults\":[{\"fault\":\"hang\"}]}");
        c = start(PLUGIN_OP_QUIESCED, DEVICE, LATE, &a);
        while (count_children(host_pid) == 0) {
                ck_assert(luv_now_usec() < end);
                ck_assert_int_ge(sd_event_run(event, 10 * USEC_PER_MSEC), 0);
        }
        luv_plugin_call_free(c);
        while (count_children(host_pid) > 0) {
                ck_assert(luv_now_usec() < end);
                ck_assert_int_ge(sd_event_run(event, 10 * USEC_PER_MSEC), 0);
        }
        ck_assert_uint_eq(a.n, 0);
}
END_TEST

/* More than run at a time, of which some never end: these and those behind them meet their deadline, or are
 * freed. */
START_TEST(waiting_for_their_turn)
{
        PluginCall *hung[32] = {}, *waiting[3] = {};
        Answer hung_answers[ELEMENTSOF(hung)] = {}, answers[ELEMENTSOF(waiting)] = {};

        configure("{\"faults\":[{\"device\":\"" DEVICE "\",\"fault\":\"hang\"}]}");
        for (size_t i = 0; i < ELEMENTSOF(hung); i++)
                hung[i] = start(PLUGIN_OP_QUIESCED, DEVICE, LATE, &hung_answers[i]);
        waiting[0] = start(PLUGIN_OP_QUIESCED, OTHER, SOON, &answers[0]);
        waiting[1] = start(PLUGIN_OP_QUIESCED, OTHER, LATE, &answers[1]);
        waiting[2] = start(PLUGIN_OP_QUIESCED, OTHER, LATE, &answers[2]);
        run_until(&answers[0].n, 1);
        ck_assert_int_eq(answers[0].error, -ETIME);
        waiting[1] = luv_plugin_call_free(waiting[1]);
        ck_assert_uint_eq(answers[2].n, 0);

        hung[7] = luv_plugin_call_free(hung[7]);
        run_until(&answers[2].n, 1);
        ck_assert_int_eq(answers[2].error, 0);
        ck_assert_uint_eq(answers[1].n, 0);
        for (size_t i = 0; i < ELEMENTSOF(hung); i++) {
                ck_assert_uint_eq(hung_answers[i].n, 0);
                luv_plugin_call_free(hung[i]);
        }
        for (size_t i = 0; i < ELEMENTSOF(waiting); i++) {
                luv_plugin_call_free(waiting[i]);
                answer_done(&answers[i]);
        }
}
END_TEST

START_TEST(freed_in_callback)
{
        _cleanup_answer_ Answer a = {};

        a.free_in_callback = start(PLUGIN_OP_PLAN, DEVICE, LATE, &a);
        run_until(&a.n, 1);
        ck_assert_int_eq(a.error, 0);
        ck_assert_str_eq(a.plan, PLAN);
}
END_TEST

START_TEST(host_dies)
{
        _cleanup_(luv_plugin_call_freep) PluginCall *c = NULL;
        _cleanup_answer_ Answer a = {};

        configure("{\"faults\":[{\"fault\":\"hang\"}]}");
        c = start(PLUGIN_OP_REBIND, DEVICE, LATE, &a);
        for (unsigned i = 0; i < 20; i++)
                ck_assert_int_ge(sd_event_run(event, 10 * USEC_PER_MSEC), 0);
        (void) kill(host_pid, SIGKILL);
        (void) waitpid(host_pid, NULL, 0);
        host_pid = 0;
        run_until(&a.n, 1);
        ck_assert_int_eq(a.error, -EPIPE);
        ck_assert_str_eq(a.reason, "plugin null died while it did rebind for device " DEVICE);
}
END_TEST

START_TEST(the_highest_score_wins)
{
        _cleanup_answer_ Answer a = {}, b = {};
        char *plugins[] = { (char *) "null", (char *) "null", NULL };

        /* The same plugin twice: a tie. */
        luv_plugin_manager_unref(manager);
        ck_assert_int_eq(luv_plugin_manager_new(event, NULL, getenv("LUVFIO_TEST_PLUGIN_HOST"), plugins,
                                                &manager),
                         0);
        call(PLUGIN_OP_MATCH, DEVICE, LATE, &a);
        ck_assert_int_eq(a.error, 0);
        ck_assert_str_eq(a.plugin, "null");

        configure("{\"devices\":[\"" OTHER "\"]}");
        call(PLUGIN_OP_MATCH, DEVICE, LATE, &b);
        ck_assert_int_eq(b.error, -ENODEV);
        ck_assert_str_eq(b.reason, "no plugin answers for device " DEVICE);
}
END_TEST

START_TEST(no_plugins)
{
        _cleanup_answer_ Answer a = {}, b = {};

        call(PLUGIN_OP_MATCH, DEVICE, LATE, &a);
        ck_assert_int_eq(a.error, -ENODEV);
        ck_assert_int_eq(rmdir(sockets), 0);
        call(PLUGIN_OP_MATCH, DEVICE, LATE, &b);
        ck_assert_int_eq(b.error, -ENODEV);
}
END_TEST

START_TEST(socket_nobody_listens_on)
{
        _cleanup_close_ int fd = bad_socket("null", 0);
        _cleanup_answer_ Answer a = {};

        call(_i == 0 ? PLUGIN_OP_MATCH : PLUGIN_OP_QUIESCED, DEVICE, LATE, &a);
        ck_assert_int_eq(a.error, -EPIPE);
        ck_assert_ptr_nonnull(strstr(a.reason, "plugin null"));
        ck_assert_ptr_nonnull(strstr(a.reason, DEVICE));
}
END_TEST

START_TEST(socket_nobody_accepts_on)
{
        _cleanup_close_ int fd = bad_socket("null", 1);
        _cleanup_answer_ Answer a = {};

        call(PLUGIN_OP_MATCH, DEVICE, SOON, &a);
        ck_assert_int_eq(a.error, -ETIME);
        ck_assert_str_eq(a.reason, "plugin null did not finish match for device " DEVICE " within 0.2 s");
}
END_TEST

/* One that answers with this. */
static void answer_raw(const char *text, size_t size, PluginOp op, Answer *a)
{
        _cleanup_(luv_plugin_call_freep) PluginCall *c = NULL;
        _cleanup_close_ int fd = bad_socket("null", 1), connection = -EBADF;

        c = start(op, DEVICE, LATE, a);
        connection = accept(fd, NULL, NULL);
        ck_assert_int_ge(connection, 0);
        ck_assert_int_eq(luv_write_all(connection, text, size), 0);
        (void) shutdown(connection, SHUT_WR);
        run_until(&a->n, 1);
}

static const struct {
        PluginOp op;
        const char *text;
        int error;
} raw[] = {
        { PLUGIN_OP_QUIESCED, "", -EPIPE },
        { PLUGIN_OP_QUIESCED, "{\"parameters\":{}}", 0 },
        { PLUGIN_OP_QUIESCED, "{\"param", -EPIPE },
        { PLUGIN_OP_QUIESCED, "this is no JSON", -EPIPE },
        { PLUGIN_OP_QUIESCED, "{\"error\":\"org.luvfio.Plugin.Failed\",\"parameters\":{}}", -EREMOTEIO },
        { PLUGIN_OP_QUIESCED, "{\"error\":\"com.example.Other\"}", -EREMOTEIO },
        { PLUGIN_OP_MATCH, "{\"parameters\":{}}", -EREMOTEIO },
        { PLUGIN_OP_MATCH, "{\"parameters\":{\"score\":-1,\"promise\":\"reset\"}}", -EREMOTEIO },
        { PLUGIN_OP_MATCH, "{\"parameters\":{\"score\":5}}", -EREMOTEIO },
        { PLUGIN_OP_MATCH, "{\"parameters\":{\"score\":5,\"promise\":\"eternal\"}}", -EREMOTEIO },
        { PLUGIN_OP_MATCH, "{\"parameters\":{\"score\":0}}", -ENODEV },
        { PLUGIN_OP_PLAN, "{\"parameters\":{\"plan\":7}}", -EREMOTEIO },
        { PLUGIN_OP_PREFLIGHT, "{\"parameters\":{\"findings\":{}}}", -EREMOTEIO },
        { PLUGIN_OP_PREFLIGHT, "{\"parameters\":{\"findings\":[7]}}", -EREMOTEIO },
        { PLUGIN_OP_PREFLIGHT,
          "{\"parameters\":{\"findings\":[{\"id\":\"a\",\"severity\":\"grim\",\"message\":\"m\"}]}}",
          -EREMOTEIO },
        { PLUGIN_OP_PREFLIGHT,
          "{\"parameters\":{\"findings\":[{\"id\":\"a\",\"severity\":\"note\",\"message\":\"m\"}]}}", 0 },
};

START_TEST(raw_answers)
{
        _cleanup_answer_ Answer a = {};
        bool whole = *raw[_i].text && raw[_i].text[strlen(raw[_i].text) - 1] != 'm';

        answer_raw(raw[_i].text, strlen(raw[_i].text) + (whole ? 1 : 0), raw[_i].op, &a);
        ck_assert_int_eq(a.error, raw[_i].error);
        if (a.error != 0) {
                ck_assert_ptr_nonnull(strstr(a.reason, DEVICE));
                if (a.error != -ENODEV)
                        ck_assert_ptr_nonnull(strstr(a.reason, "plugin null"));
        }
}
END_TEST

START_TEST(deadline_is_past)
{
        _cleanup_(luv_plugin_call_freep) PluginCall *c = NULL;
        _cleanup_answer_ Answer a = {};

        ck_assert_int_eq(luv_plugin_call(manager, PLUGIN_OP_QUIESCED, "null", DEVICE, NULL,
                                         FD_PRESERVED_UNKNOWN, 1, on_done, &a, &c),
                         0);
        ck_assert_uint_eq(a.n, 0);
        run_until(&a.n, 1);
        ck_assert_int_eq(a.error, -ETIME);
}
END_TEST

START_TEST(bad_arguments)
{
        PluginCall *c = NULL;
        Answer a = {};

        ck_assert_int_eq(luv_plugin_call(manager, PLUGIN_OP_MATCH, "null", DEVICE, NULL,
                                         FD_PRESERVED_UNKNOWN, 0, on_done, &a, &c),
                         -EINVAL);
        ck_assert_int_eq(luv_plugin_call(manager, PLUGIN_OP_PLAN, NULL, DEVICE, NULL, FD_PRESERVED_UNKNOWN,
                                         0, on_done, &a, &c),
                         -EINVAL);
        ck_assert_int_eq(luv_plugin_call(manager, PLUGIN_OP_PLAN, "null", DEVICE, PLAN, FD_PRESERVED_UNKNOWN,
                                         0, on_done, &a, &c),
                         -EINVAL);
        ck_assert_int_eq(luv_plugin_call(manager, PLUGIN_OP_REBIND, "null", DEVICE, NULL,
                                         FD_PRESERVED_UNKNOWN, 0, on_done, &a, &c),
                         -EINVAL);
        ck_assert_int_eq(luv_plugin_call(manager, _PLUGIN_OP_MAX, "null", DEVICE, NULL, FD_PRESERVED_UNKNOWN,
                                         0, on_done, &a, &c),
                         -EINVAL);
        ck_assert_ptr_null(c);
}
END_TEST

static Suite *suite(void)
{
        Suite *s = suite_create("plugin");
        TCase *host = tcase_create("host"), *bare = tcase_create("bare");

        tcase_add_checked_fixture(host, setup_host, teardown);
        tcase_set_timeout(host, 60);
        tcase_add_loop_test(host, all_operations, 0, 2);
        tcase_add_test(host, preserved_is_passed_on);
        tcase_add_loop_test(host, refuses, 0, _PLUGIN_OP_MAX);
        tcase_add_loop_test(host, crashes, 0, _PLUGIN_OP_MAX);
        tcase_add_loop_test(host, hangs, 0, _PLUGIN_OP_MAX);
        tcase_add_loop_test(host, lies, 0, _PLUGIN_OP_MAX);
        tcase_add_loop_test(host, garbles, 0, _PLUGIN_OP_MAX);
        tcase_add_test(host, findings);
        tcase_add_test(host, a_hang_costs_its_device_only);
        tcase_add_test(host, many_at_once);
        tcase_add_test(host, waiting_for_their_turn);
        tcase_add_test(host, cancelled);
        tcase_add_test(host, freed_in_callback);
        tcase_add_test(host, host_dies);
        suite_add_tcase(s, host);

        tcase_add_checked_fixture(bare, setup, teardown);
        tcase_set_timeout(bare, 60);
        tcase_add_test(bare, crashes_when_spawned);
        tcase_add_test(bare, hangs_when_spawned);
        tcase_add_test(bare, spawn_fails);
        tcase_add_test(bare, unusable_plugin);
        tcase_add_test(bare, the_highest_score_wins);
        tcase_add_test(bare, no_plugins);
        tcase_add_loop_test(bare, socket_nobody_listens_on, 0, 2);
        tcase_add_test(bare, socket_nobody_accepts_on);
        tcase_add_loop_test(bare, raw_answers, 0, ELEMENTSOF(raw));
        tcase_add_test(bare, deadline_is_past);
        tcase_add_test(bare, bad_arguments);
        suite_add_tcase(s, bare);
        return s;
}

int main(void)
{
        SRunner *runner;
        int failed;

        if (!getenv("LUVFIO_TEST_PLUGIN_HOST") || !getenv("LUVFIO_PLUGIN_DIR")) {
                puts("1..0 # SKIP run by meson, which says where plugin host and plugins are");
                return EXIT_SUCCESS;
        }
        runner = srunner_create(suite());
        srunner_set_tap(runner, "-");
        srunner_run_all(runner, CK_SILENT);
        failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
