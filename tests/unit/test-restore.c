/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <sys/stat.h>

#include "luo-fixture.h"
#include "restore/restore.h"
#include "util/io.h"
#include "util/string-util.h"

#define ID "0123456789abcdef0123456789abcdef"

/*
 * The kernel is the simulation, given what it would have after a jump; the plugins are played here. What is
 * called back is written down, a line each.
 */

static sd_event *event;
static Luo *luo;
static FdStore *store;
static Restore *restore;
static char *told;
static bool over, free_in_ready;
static int over_error;
static int64_t asked;

/* The state of the simulation as the jump leaves it. */
static char *sessions;

_printf_(1, 2) static void tell(const char *format, ...)
{
        char *line, *joined;
        va_list ap;

        va_start(ap, format);
        ck_assert_int_ge(vasprintf(&line, format, ap), 0);
        va_end(ap);
        joined = luv_strf("%s%s\n", strempty(told), line);
        ck_assert_ptr_nonnull(joined);
        free(told);
        free(line);
        told = joined;
}

/* Plugins: the device's plan says what happens. They answer later, as real ones do. */

struct PluginCall {
        sd_event_source *source;
        PluginOp op;
        char *device, *plan;
        PluginDone done;
        void *userdata;
};

PluginCall *luv_plugin_call_free(PluginCall *c)
{
        if (!c)
                return NULL;
        (void) sd_event_source_disable_unref(c->source);
        free(c->device);
        free(c->plan);
        free(c);
        return NULL;
}

static int plugin_answers(sd_event_source *source, void *userdata)
{
        PluginResult result = {};
        PluginCall *c = userdata;

        tell("%s %s", c->op == PLUGIN_OP_REBIND ? "rebind" : "verify", c->device);
        if (c->op == PLUGIN_OP_REBIND && streq(c->plan, "no rebind"))
                result = (PluginResult) { .error = -EREMOTEIO, .reason = "plugin null: no driver" };
        if (c->op == PLUGIN_OP_VERIFY && streq(c->plan, "no verify"))
                result = (PluginResult) { .error = -ETIME };
        c->done(&result, c->userdata);
        return 0;
}

int luv_plugin_call(PluginManager *m, PluginOp op, const char *plugin, const char *device, const char *plan,
                    uint64_t preserved, uint64_t deadline, PluginDone done, void *userdata, PluginCall **ret)
{
        PluginCall *c;

        ck_assert_str_eq(plugin, "null");
        ck_assert(preserved == FD_PRESERVED_UNKNOWN);
        if (streq(plan, "no plugin"))
                return -ECONNREFUSED;
        c = calloc(1, sizeof(*c));
        ck_assert_ptr_nonnull(c);
        *c = (PluginCall) {
                .op = op,
                .device = strdup(device),
                .plan = strdup(plan),
                .done = done,
                .userdata = userdata,
        };
        ck_assert_int_ge(sd_event_add_defer(event, &c->source, plugin_answers, c), 0);
        /* In the order in which they were asked. */
        ck_assert_int_ge(sd_event_source_set_priority(c->source, ++asked), 0);
        *ret = c;
        return 0;
}

static void on_found(const HostRecord *host, void *userdata)
{
        tell("found %zu", host->n_sessions);
}

static void on_ready(MachineRecord *record, LuoSession *session, void *userdata)
{
        tell("ready %s %s", record->name, luv_luo_session_get_name(session));
        luv_machine_record_free(record);
        luv_luo_session_unref(session);
        if (free_in_ready)
                restore = luv_restore_free(restore);
}

static void on_gone(const char *machine, void *userdata)
{
        tell("gone %s", machine);
}

static void on_stranded(const char *machine, const char *reason, MachineRecord *record, LuoSession *session,
                        void *userdata)
{
        tell("stranded %s%s%s: %s", machine, record ? " record" : "", session ? " session" : "", reason);
        luv_machine_record_free(record);
        luv_luo_session_unref(session);
}

static void on_done(int error, const char *reason, HostRecord *host, LuoSession *host_session,
                    void *userdata)
{
        tell("done%s%s%s%s", host ? " record" : "", host_session ? " session" : "", reason ? ": " : "",
             strempty(reason));
        luv_host_record_free(host);
        luv_luo_session_unref(host_session);
        ck_assert(!over);
        over = true;
        over_error = error;
        restore = luv_restore_free(restore);
}

static RestoreCallbacks callbacks;

static void setup(void)
{
        callbacks = (RestoreCallbacks) {
                .found = on_found,
                .ready = on_ready,
                .gone = on_gone,
                .stranded = on_stranded,
                .done = on_done,
        };
        (void) unsetenv("NOTIFY_SOCKET");
        (void) unsetenv("LISTEN_FDS");
        (void) unsetenv("LUVFIO_SIMULATED_LOG");
        ck_assert_int_ge(sd_event_new(&event), 0);
        ck_assert_int_eq(luv_fd_store_new(&store), 0);
        over = free_in_ready = false;
        over_error = 0;
}

static void teardown(void)
{
        restore = luv_restore_free(restore);
        luo = luv_luo_unref(luo);
        store = luv_fd_store_free(store);
        event = sd_event_unref(event);
        free(told);
        told = NULL;
        free(sessions);
        sessions = NULL;
}

/* A session of one file, which is handed over. */
static void add_session(const char *name, uint64_t token, int fd)
{
        char *grown = luv_strf("%s%s{\"name\":\"%s\",\"files\":[{\"token\":%llu,\"fd\":%i}]}",
                               strempty(sessions), sessions ? "," : "", name, (unsigned long long) token,
                               fd);

        ck_assert_ptr_nonnull(grown);
        free(sessions);
        sessions = grown;
}

/* Its first record is FD, or as it should be if that is negative. */
static void add_host_v(int fd, size_t n, va_list ap)
{
        _cleanup_free_ SessionRecord *listed = calloc(n, sizeof(SessionRecord));
        HostRecord h = { .update_id = (char *) ID, .sessions = listed, .n_sessions = n };
        int copy;

        for (size_t i = 0; i < n; i++) {
                listed[i].machine = va_arg(ap, char *);
                listed[i].session = luv_strf("luvfio-%s-1", listed[i].machine);
                listed[i].serial = i + 1;
        }
        if (fd < 0)
                ck_assert_int_eq(luv_host_record_write(&h, &fd), 0);
        ck_assert_int_eq(luv_host_record_write(&h, &copy), 0);
        sessions = luv_strf("{\"name\":\"" LUVFIO_HOST_SESSION
                            "\",\"files\":[{\"token\":0,\"fd\":%i},{\"token\":1,\"fd\":%i}]}",
                            fd, copy);
        ck_assert_ptr_nonnull(sessions);
        for (size_t i = 0; i < n; i++)
                free(listed[i].session);
}

static void add_host(size_t n, ...)
{
        va_list ap;

        va_start(ap, n);
        add_host_v(-EBADF, n, ap);
        va_end(ap);
}

static void add_host_with(int fd, size_t n, ...)
{
        va_list ap;

        va_start(ap, n);
        add_host_v(fd, n, ap);
        va_end(ap);
}

static int record_of_devices(const char *session, const char *name, uint64_t serial, DeviceRecord *devices,
                             size_t n_devices)
{
        MachineRecord m = {
                .name = (char *) name,
                .secret = (char *) ID,
                .session = (char *) session,
                .serial = serial,
                .devices = devices,
                .n_devices = n_devices,
        };
        int fd;

        ck_assert_int_eq(luv_machine_record_write(&m, &fd), 0);
        return fd;
}

static int record_in(const char *session, const char *name, uint64_t serial, const char *plan,
                     const char *second_plan)
{
        DeviceRecord devices[] = {
                { (char *) "0000:00:04.0", (char *) "null", (char *) "reset", (char *) plan },
                { (char *) "0000:00:05.0", (char *) "null", (char *) "reset", (char *) second_plan },
        };

        return record_of_devices(session, name, serial, devices, !plan ? 0 : !second_plan ? 1 : 2);
}

/* With a device that no other machine has. */
static int record_with(const char *device, const char *session, const char *name, uint64_t serial)
{
        DeviceRecord d = { (char *) device, (char *) "null", (char *) "reset", (char *) "x" };

        return record_of_devices(session, name, serial, &d, 1);
}

static int machine_record(const char *name, uint64_t serial, const char *plan, const char *second_plan)
{
        _cleanup_free_ char *session = luv_strf("luvfio-%s-1", name);

        return record_in(session, name, serial, plan, second_plan);
}

static void add_machine(const char *name, uint64_t serial, const char *plan, const char *second_plan)
{
        _cleanup_free_ char *session = luv_strf("luvfio-%s-1", name);

        add_session(session, LUVFIO_MACHINE_TOKEN(serial), machine_record(name, serial, plan, second_plan));
}

static void boot(const char *fail)
{
        _cleanup_free_ char *state = luv_strf("{\"sessions\":[%s],\"counters\":{}}", strempty(sessions));
        int fd = luv_memfd_sealed("state", state, strlen(state));

        ck_assert_int_ge(fd, 0);
        ck_assert_int_eq(luv_luo_new(event, LUO_BACKEND_SIMULATED, fd, fail, &luo), 0);
}

static void run_with_deadline(uint64_t deadline)
{
        ck_assert_int_eq(luv_restore_start(event, luo, store, NULL, deadline, &callbacks, NULL, &restore),
                         0);
        ck_assert_ptr_null(told);
        while (!over)
                ck_assert_int_gt(sd_event_run(event, 20 * USEC_PER_SEC), 0);
}

static void run(void)
{
        run_with_deadline(TEST_DEADLINE);
}

START_TEST(cold_boot)
{
        boot(NULL);
        run();
        ck_assert_int_eq(over_error, -ENOENT);
        ck_assert_str_eq(told, "done: nothing was handed over to this kernel\n");
}
END_TEST

START_TEST(all_well)
{
        add_host(2, "a", "b");
        add_machine("b", 2, NULL, NULL);
        add_machine("a", 1, "x", "y");
        boot(NULL);
        run();
        ck_assert_int_eq(over_error, 0);
        ck_assert_str_eq(told, "found 2\nready b luvfio-b-1\nrebind 0000:00:04.0\nrebind 0000:00:05.0\n"
                               "verify 0000:00:04.0\nverify 0000:00:05.0\nready a luvfio-a-1\ndone record "
                               "session\n");
}
END_TEST

START_TEST(no_machines)
{
        add_host(0);
        boot(NULL);
        run();
        ck_assert_int_eq(over_error, 0);
        ck_assert_str_eq(told, "found 0\ndone record session\n");
}
END_TEST

/* The record with N bytes at OFFSET changed. */
static int changed(int fd, size_t offset, size_t n)
{
        _cleanup_close_ int record_fd = fd;
        uint8_t document[4096];
        ssize_t size = pread(record_fd, document, sizeof(document), 0);

        ck_assert_int_ge(size, (ssize_t) (offset + n));
        memset(document + offset, 99, n);
        fd = luv_memfd_sealed("changed", document, (size_t) size);
        ck_assert_int_ge(fd, 0);
        return fd;
}

/* Each in its own way: and the last one is fine all the same. */
START_TEST(stranded)
{
        static const char *const untouched[] = { "0000:00:06.0", "0000:00:07.0", "0000:00:08.0" };
        _cleanup_close_ int nonsense = make_memfd("nonsense", "nonsense");

        add_host(9, "rebind", "verify", "plugin", "nonsense", "other", "lost", "well", "future", "damaged");
        add_machine("rebind", 1, "x", "no rebind");
        add_machine("verify", 2, "no verify", NULL);
        add_machine("plugin", 3, "no plugin", NULL);
        add_session("luvfio-nonsense-1", LUVFIO_MACHINE_TOKEN(4), nonsense);
        add_session("luvfio-other-1", LUVFIO_MACHINE_TOKEN(5),
                    record_with(untouched[0], "luvfio-well-1", "well", 7));
        add_machine("well", 7, "x", NULL);
        /* Version and lowest reader come after the magic. */
        add_session("luvfio-future-1", LUVFIO_MACHINE_TOKEN(8),
                    changed(record_with(untouched[1], "luvfio-future-1", "future", 8), 8, 4));
        add_session("luvfio-damaged-1", LUVFIO_MACHINE_TOKEN(9),
                    changed(record_with(untouched[2], "luvfio-damaged-1", "damaged", 9), 100, 1));
        TAKE_FD(nonsense);
        boot(NULL);
        run();
        ck_assert_int_eq(over_error, 0);
        ck_assert_ptr_nonnull(strstr(told, "stranded rebind record session: plugin null: no driver\n"));
        ck_assert_ptr_nonnull(strstr(told,
                                     "stranded verify record session: device 0000:00:04.0 cannot be brought "
                                     "back: Timer expired\n"));
        ck_assert_ptr_nonnull(strstr(told,
                                     "stranded plugin record session: plugin null cannot be asked to bind "
                                     "device 0000:00:04.0: Connection refused\n"));
        ck_assert_ptr_nonnull(
                        strstr(told,
                               "stranded nonsense session: the machine record has 8 bytes, too few for its "
                               "header\n"));
        ck_assert_ptr_nonnull(
                        strstr(told,
                               "stranded other session: session luvfio-other-1 holds the record of machine "
                               "well, session luvfio-well-1, number 7, where the host's has other, number "
                               "5\n"));
        ck_assert_ptr_nonnull(strstr(told,
                                     "stranded future session: the machine record was written in version "
                                     "25443, which asks for a reader of version 25443; this is 1\n"));
        ck_assert_ptr_nonnull(strstr(
                        told,
                        "stranded damaged session: the machine record is damaged: its checksum is wrong\n"));
        ck_assert_ptr_nonnull(strstr(told, "gone lost\n"));
        ck_assert_ptr_nonnull(strstr(told, "ready well luvfio-well-1\n"));
        ck_assert_str_eq(strstr(told, "done"), "done record session\n");
        /* The healthy device of a machine that has another one is not verified for nothing, nor left out. */
        ck_assert_ptr_nonnull(strstr(told, "rebind 0000:00:05.0\n"));
        /* Nobody touches a device of which only an unreadable record, or another machine's, tells. */
        for (size_t i = 0; i < ELEMENTSOF(untouched); i++)
                ck_assert_ptr_null(strstr(told, untouched[i]));
}
END_TEST

/* A record that is sound, and this machine's, and yet not the one of this jump. */
START_TEST(of_another_jump)
{
        add_host(3, "older", "numbered", "well");
        add_session("luvfio-older-1", LUVFIO_MACHINE_TOKEN(1),
                    record_in("luvfio-older-0", "older", 1, "x", NULL));
        add_session("luvfio-numbered-1", LUVFIO_MACHINE_TOKEN(2),
                    record_in("luvfio-numbered-1", "numbered", 9, "x", NULL));
        add_machine("well", 3, NULL, NULL);
        boot(NULL);
        run();
        ck_assert_int_eq(over_error, 0);
        ck_assert_ptr_nonnull(
                        strstr(told,
                               "stranded older session: session luvfio-older-1 holds the record of machine "
                               "older, session luvfio-older-0, number 1, where the host's has older, "
                               "number 1\n"));
        ck_assert_ptr_nonnull(
                        strstr(told,
                               "stranded numbered session: session luvfio-numbered-1 holds the record of "
                               "machine numbered, session luvfio-numbered-1, number 9, where the host's has "
                               "numbered, number 2\n"));
        ck_assert_ptr_null(strstr(told, "rebind"));
        ck_assert_ptr_null(strstr(told, "verify"));
        ck_assert_ptr_nonnull(strstr(told, "ready well luvfio-well-1\n"));
}
END_TEST

/* Finished by one before us that was killed before it took the session out of the store. */
START_TEST(finished_in_store)
{
        LuoSession *s;
        char pid[16];

        add_host(2, "a", "b");
        add_machine("a", 1, "x", NULL);
        add_machine("b", 2, NULL, NULL);
        boot(NULL);
        ck_assert_int_eq(do_retrieve_session(event, luo, "luvfio-a-1", &s), 0);
        ck_assert_int_eq(do_finish(event, s), 0);
        ck_assert_int_eq(dup3(luv_luo_session_get_fd(s), 3, O_CLOEXEC), 3);
        luv_luo_session_unref(s);
        (void) snprintf(pid, sizeof(pid), "%i", getpid());
        ck_assert_int_eq(setenv("LISTEN_PID", pid, 1), 0);
        ck_assert_int_eq(setenv("LISTEN_FDS", "1", 1), 0);
        ck_assert_int_eq(setenv("LISTEN_FDNAMES", "luvfio-a-1", 1), 0);
        store = luv_fd_store_free(store);
        ck_assert_int_eq(luv_fd_store_new(&store), 0);
        run();
        ck_assert_int_eq(over_error, 0);
        ck_assert_ptr_nonnull(strstr(told, "gone a\n"));
        ck_assert_ptr_nonnull(strstr(told, "ready b luvfio-b-1\n"));
        /* Kept for the next one. */
        ck_assert_int_eq(dup2(STDIN_FILENO, 3), 3);
}
END_TEST

START_TEST(gone_is_stranded)
{
        callbacks.gone = NULL;
        add_host(1, "lost");
        boot(NULL);
        run();
        ck_assert_str_eq(
                        told,
                        "found 1\nstranded lost: session luvfio-lost-1 cannot be retrieved: No such file or "
                        "directory\ndone record session\n");
}
END_TEST

START_TEST(failing_kernel)
{
        add_host(2, "a", "b");
        add_machine("a", 1, NULL, NULL);
        add_machine("b", 2, NULL, NULL);
        boot("retrieve_session:1:EBUSY,retrieve_session:3:EIO,retrieve_session:5+:EIO,retrieve:2:ENOMEM");
        run();
        ck_assert_str_eq(
                        told,
                        "found 2\nstranded b session: the record in session luvfio-b-1 cannot be retrieved: "
                        "Cannot allocate memory\nstranded a: session luvfio-a-1 cannot be retrieved: "
                        "Input/output error\ndone record session\n");
}
END_TEST

START_TEST(damaged_host)
{
        add_session(LUVFIO_HOST_SESSION, LUVFIO_HOST_TOKEN, machine_record("a", 1, NULL, NULL));
        boot(NULL);
        run();
        ck_assert_int_eq(over_error, -EBADMSG);
        ck_assert_str_eq(told, "done session: what should be the host record is a machine record\n");
}
END_TEST

START_TEST(no_host_record)
{
        add_session(LUVFIO_HOST_SESSION, 77, make_memfd("x", "x"));
        boot(NULL);
        run();
        ck_assert_int_eq(over_error, -EBADMSG);
        ck_assert_str_eq(told, "done session: the record in session luvfio-host cannot be retrieved: No "
                               "such file or "
                               "directory\n");
}
END_TEST

/* A session that cannot be had is asked for again; nobody hears of it. */
START_TEST(session_later)
{
        add_host(1, "a");
        add_machine("a", 1, NULL, NULL);
        boot("retrieve_session:1:ENOMEM,retrieve_session:2:ENFILE,retrieve_session:4:EIO");
        run();
        ck_assert_int_eq(over_error, 0);
        ck_assert_str_eq(told, "found 1\nready a luvfio-a-1\ndone record session\n");
}
END_TEST

/* The host's record is there twice. */
START_TEST(host_copy)
{
        add_host(1, "a");
        add_machine("a", 1, NULL, NULL);
        boot("retrieve:1:ENOMEM");
        run();
        ck_assert_int_eq(over_error, 0);
        ck_assert_str_eq(told, "found 1\nready a luvfio-a-1\ndone record session\n");
}
END_TEST

START_TEST(host_copy_of_damaged)
{
        add_host_with(make_memfd("x", "nonsense"), 1, "a");
        add_machine("a", 1, NULL, NULL);
        boot(NULL);
        run();
        ck_assert_int_eq(over_error, 0);
        ck_assert_str_eq(told, "found 1\nready a luvfio-a-1\ndone record session\n");
}
END_TEST

START_TEST(host_copy_fails_too)
{
        add_host(1, "a");
        add_machine("a", 1, NULL, NULL);
        boot("retrieve:1:ENOMEM,retrieve:2:EIO");
        run();
        ck_assert_int_eq(over_error, -EIO);
        ck_assert_str_eq(told, "done session: the record in session luvfio-host cannot be retrieved: Cannot "
                               "allocate memory\n");
}
END_TEST

START_TEST(host_fails)
{
        add_host(0);
        boot("retrieve_session:1+:EIO");
        run();
        ck_assert_int_eq(over_error, -EIO);
        ck_assert_str_eq(told, "done: session luvfio-host cannot be retrieved: Input/output error\n");
}
END_TEST

/* Somebody has the session still: a worker of the one before us. */
START_TEST(held)
{
        LuoSession *holder = NULL;

        add_host(0);
        boot(NULL);
        ck_assert_int_eq(do_retrieve_session(event, luo, LUVFIO_HOST_SESSION, &holder), 0);
        ck_assert_int_eq(luv_restore_start(event, luo, store, NULL, TEST_DEADLINE, &callbacks, NULL,
                                           &restore),
                         0);
        for (unsigned i = 0; i < 5; i++)
                ck_assert_int_ge(sd_event_run(event, 30 * USEC_PER_MSEC), 0);
        ck_assert_ptr_null(told);
        luv_luo_session_unref(holder);
        while (!over)
                ck_assert_int_gt(sd_event_run(event, 20 * USEC_PER_SEC), 0);
        ck_assert_str_eq(told, "found 0\ndone record session\n");
}
END_TEST

START_TEST(held_for_ever)
{
        _cleanup_(luv_luo_session_unrefp) LuoSession *holder = NULL;

        add_host(0);
        boot(NULL);
        ck_assert_int_eq(do_retrieve_session(event, luo, LUVFIO_HOST_SESSION, &holder), 0);
        run_with_deadline(luv_now_usec() + 100 * USEC_PER_MSEC);
        ck_assert_int_lt(over_error, 0);
        ck_assert(strstr(told, "is held by another process") || strstr(told, "Timer expired"));
        holder = luv_luo_session_unref(holder);
        luo = luv_luo_unref(luo);
}
END_TEST

/* Killed at any point, and begun anew: all that was found is found again. */
START_TEST(again)
{
        for (unsigned steps = 0;; steps++) {
                bool ended;

                free(sessions);
                sessions = NULL;
                free(told);
                told = NULL;
                over = false;
                add_host(2, "a", "b");
                add_machine("a", 1, "x", NULL);
                add_machine("b", 2, NULL, NULL);
                boot(NULL);
                ck_assert_int_eq(luv_restore_start(event, luo, store, NULL, TEST_DEADLINE, &callbacks, NULL,
                                                   &restore),
                                 0);
                for (unsigned i = 0; i < steps && !over; i++)
                        ck_assert_int_ge(sd_event_run(event, 0), 0);
                ended = over;
                restore = luv_restore_free(restore);
                settle(event);

                free(told);
                told = NULL;
                over = false;
                run();
                ck_assert_int_eq(over_error, 0);
                ck_assert_ptr_nonnull(strstr(told, "ready a luvfio-a-1\n"));
                ck_assert_ptr_nonnull(strstr(told, "ready b luvfio-b-1\n"));
                ck_assert_str_eq(strstr(told, "done"), "done record session\n");
                settle(event);
                luo = luv_luo_unref(luo);
                if (ended)
                        break;
        }
}
END_TEST

/* What the service manager passes at start is at 3 and on: main() keeps these for the test. */
static void pass_session(int at, const char *name)
{
        LuoSession *s;

        ck_assert_int_eq(do_retrieve_session(event, luo, name, &s), 0);
        ck_assert_int_eq(dup3(luv_luo_session_get_fd(s), at, O_CLOEXEC), at);
        luv_luo_session_unref(s);
}

START_TEST(from_store)
{
        char pid[16];

        add_host(3, "a", "b", "c");
        add_machine("a", 1, "x", NULL);
        add_machine("b", 2, NULL, NULL);
        add_machine("c", 3, NULL, NULL);
        boot(NULL);
        pass_session(3, LUVFIO_HOST_SESSION);
        pass_session(4, "luvfio-a-1");
        /* Something else under a session's name: the kernel has the right one. */
        ck_assert_int_eq(dup3(STDIN_FILENO, 5, O_CLOEXEC), 5);
        (void) snprintf(pid, sizeof(pid), "%i", getpid());
        ck_assert_int_eq(setenv("LISTEN_PID", pid, 1), 0);
        ck_assert_int_eq(setenv("LISTEN_FDS", "3", 1), 0);
        ck_assert_int_eq(setenv("LISTEN_FDNAMES", "luvfio-host:luvfio-a-1:luvfio-b-1", 1), 0);
        store = luv_fd_store_free(store);
        ck_assert_int_eq(luv_fd_store_new(&store), 0);
        run();
        ck_assert_int_eq(over_error, 0);
        ck_assert_str_eq(told, "found 3\nready b luvfio-b-1\nready c luvfio-c-1\nrebind 0000:00:04.0\n"
                               "verify 0000:00:04.0\nready a luvfio-a-1\ndone record session\n");
}
END_TEST

START_TEST(freed_in_callback)
{
        free_in_ready = true;
        add_host(2, "a", "b");
        add_machine("a", 1, NULL, NULL);
        add_machine("b", 2, NULL, NULL);
        boot(NULL);
        ck_assert_int_eq(luv_restore_start(event, luo, store, NULL, TEST_DEADLINE, &callbacks, NULL,
                                           &restore),
                         0);
        settle(event);
        ck_assert_ptr_null(restore);
        ck_assert_str_eq(told, "found 2\nready a luvfio-a-1\n");
}
END_TEST

int main(void)
{
        Suite *suite = suite_create("restore");
        TCase *c = tcase_create("restore");
        SRunner *runner;
        int failed;

        for (int fd = 3; fd < 6; fd++)
                if (dup2(STDIN_FILENO, fd) < 0)
                        return EXIT_FAILURE;

        tcase_set_timeout(c, 60);
        tcase_add_checked_fixture(c, setup, teardown);
        tcase_add_test(c, cold_boot);
        tcase_add_test(c, all_well);
        tcase_add_test(c, no_machines);
        tcase_add_test(c, stranded);
        tcase_add_test(c, of_another_jump);
        tcase_add_test(c, finished_in_store);
        tcase_add_test(c, gone_is_stranded);
        tcase_add_test(c, failing_kernel);
        tcase_add_test(c, damaged_host);
        tcase_add_test(c, no_host_record);
        tcase_add_test(c, session_later);
        tcase_add_test(c, host_copy);
        tcase_add_test(c, host_copy_of_damaged);
        tcase_add_test(c, host_copy_fails_too);
        tcase_add_test(c, host_fails);
        tcase_add_test(c, held);
        tcase_add_test(c, held_for_ever);
        tcase_add_test(c, again);
        tcase_add_test(c, from_store);
        tcase_add_test(c, freed_in_callback);
        suite_add_tcase(suite, c);
        runner = srunner_create(suite);
        srunner_set_tap(runner, "-");
        srunner_run_all(runner, CK_SILENT);
        failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
