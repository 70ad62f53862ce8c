/* SPDX-License-Identifier: LGPL-2.1-or-later */

/*
 * luvfio-plugin-host: runs one device plugin and serves it as org.luvfio.Plugin.
 *
 * Each operation is done in a forked process of its own, so that a plugin which crashes or hangs costs the
 * device that it was asked about, and others can be asked meanwhile. This process itself never waits.
 */

#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <systemd/sd-event.h>
#include <systemd/sd-varlink.h>

#include "config.h"
#include "plugin-host/host-plugin.h"
#include "util/log.h"
#include "util/string-util.h"
#include "util/time-util.h"
#include "varlink/idl.h"

#define TIMEOUT_DEFAULT_USEC (30 * USEC_PER_SEC)
#define TIMEOUT_MAX_USEC (600 * USEC_PER_SEC)
#define IDLE_EXIT_USEC (30 * USEC_PER_SEC)
#define CONNECTIONS_MAX 256u
/* A plan, each byte of which may be escaped as six, or 32 findings. */
#define ANSWER_MAX ((size_t) 256 * 1024)

typedef struct Host {
        HostOptions options;
        const struct luvfio_plugin *plugin;
        char *load_error; /* why there is no plugin */
        sd_event *event;
        sd_varlink_server *server;
        sd_event_source *idle;
        unsigned n_connections;
        bool exit_on_idle;
} Host;

/* One operation that runs in a child process. */
typedef struct Operation {
        Host *host;
        HostOp op;
        sd_varlink *link;
        struct luvfio_device *device;
        uint64_t timeout;
        pid_t pid;
        int answer_fd;
        char *answer;
        size_t answer_size;
        bool eof, exited;
        siginfo_t status;
        sd_event_source *answer_source, *child_source, *timer;
} Operation;

static int on_orphan(sd_event_source *s, const siginfo_t *si, void *userdata)
{
        sd_event_source_unref(s);
        return 0;
}

static Operation *operation_free(Operation *o)
{
        if (!o)
                return NULL;

        sd_event_source_disable_unref(o->answer_source);
        sd_event_source_disable_unref(o->timer);
        if (o->child_source && !o->exited) {
                /* It may hang in the kernel: it is reaped when it is gone, and nobody waits for that. */
                (void) kill(o->pid, SIGKILL);
                sd_event_source_set_userdata(o->child_source, NULL);
        } else
                sd_event_source_disable_unref(o->child_source);
        (void) safe_close(o->answer_fd);
        if (o->link) {
                sd_varlink_set_userdata(o->link, o->host);
                sd_varlink_unref(o->link);
        }
        luv_host_device_free(o->device);
        free(o->answer);
        free(o);
        return NULL;
}
DEFINE_CLEANUP(Operation *, operation_free);

static int reply_error(sd_varlink *link, const char *error, const char *device, const char *reason)
{
        return sd_varlink_errorbo(link, error, SD_JSON_BUILD_PAIR_STRING("device", device),
                                  SD_JSON_BUILD_PAIR_STRING("reason", reason));
}

static int reply_answer(Operation *o)
{
        sd_json_variant *answer = NULL, *v;
        int r;

        if (sd_json_parse(strempty(o->answer), 0, &answer, NULL, NULL) < 0)
                return reply_error(o->link, VL_ERROR_PLUGIN("Died"), o->device->address,
                                   "it ended without an answer");
        if ((v = sd_json_variant_by_key(answer, "ok")))
                r = sd_varlink_reply(o->link, v);
        else if ((v = sd_json_variant_by_key(answer, "failed")) && sd_json_variant_is_string(v))
                r = reply_error(o->link, VL_ERROR_PLUGIN("Failed"), o->device->address,
                                sd_json_variant_string(v));
        else
                r = reply_error(o->link, VL_ERROR_PLUGIN("Died"), o->device->address,
                                "it ended without an answer");
        sd_json_variant_unref(answer);
        return r;
}

/* When both the answer and the process have come to their end. */
static void operation_check_done(Operation *o)
{
        _cleanup_free_ char *reason = NULL;
        int r;

        if (!o->eof || !o->exited)
                return;

        if (o->status.si_code == CLD_EXITED && o->status.si_status == EXIT_SUCCESS)
                r = reply_answer(o);
        else {
                if (o->status.si_code == CLD_EXITED)
                        reason = luv_strf("it ended with exit status %i", o->status.si_status);
                else
                        reason = luv_strf("it was killed by SIG%s",
                                          strempty(sigabbrev_np(o->status.si_status)));
                luv_log_struct(LOG_ERR,
                               &(LogFields) { .plugin = o->host->options.plugin,
                                              .device = o->device->address },
                               "plugin %s died while it did %s for device %s: %s", o->host->options.plugin,
                               luv_host_op_to_string(o->op), o->device->address, strempty(reason));
                r = reply_error(o->link, VL_ERROR_PLUGIN("Died"), o->device->address,
                                reason ? reason : "out of memory");
        }
        if (r < 0)
                luv_log_debug("cannot reply: %s", strerror(-r));
        operation_free(o);
}

static int on_answer(sd_event_source *s, int fd, uint32_t events, void *userdata)
{
        Operation *o = userdata;
        char *answer;
        ssize_t n;

        answer = realloc(o->answer, o->answer_size + 4096 + 1);
        if (!answer)
                return luv_log_error(-ENOMEM, "cannot read the answer of plugin %s",
                                     o->host->options.plugin);
        o->answer = answer;

        n = read(fd, answer + o->answer_size, 4096);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return 0;
        if (n > 0)
                o->answer_size += (size_t) n;
        answer[o->answer_size] = 0;

        if (n <= 0 || o->answer_size > ANSWER_MAX) {
                /* Too much is as good as nothing. */
                if (o->answer_size > ANSWER_MAX)
                        *answer = 0;
                o->eof = true;
                o->answer_source = sd_event_source_disable_unref(o->answer_source);
                o->answer_fd = safe_close(o->answer_fd);
                operation_check_done(o);
        }
        return 0;
}

static int on_exit_of_child(sd_event_source *s, const siginfo_t *si, void *userdata)
{
        Operation *o = userdata;

        if (!o)
                return on_orphan(s, si, NULL);
        o->exited = true;
        o->status = *si;
        operation_check_done(o);
        return 0;
}

static int on_timeout(sd_event_source *s, uint64_t usec, void *userdata)
{
        Operation *o = userdata;
        _cleanup_free_ char *reason = NULL;

        reason = luv_strf("it had %.1f s", (double) o->timeout / (double) USEC_PER_SEC);
        luv_log_struct(LOG_ERR,
                       &(LogFields) { .plugin = o->host->options.plugin, .device = o->device->address },
                       "plugin %s did not finish %s for device %s and is killed: %s",
                       o->host->options.plugin, luv_host_op_to_string(o->op), o->device->address,
                       strempty(reason));
        (void) reply_error(o->link, VL_ERROR_PLUGIN("TimedOut"), o->device->address,
                           reason ? reason : "out of memory");
        operation_free(o);
        return 0;
}

/* The child: does the operation and ends. Nothing of the event loop is touched here. */
_Noreturn static void child_main(Operation *o, const char *plan, int answer_fd, pid_t parent)
{
        _cleanup_free_ char *answer = NULL;
        sigset_t none;
        int r;

        (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
                _exit(EXIT_FAILURE);
        (void) sigemptyset(&none);
        (void) sigprocmask(SIG_SETMASK, &none, NULL);

        r = luv_host_plugin_run(o->host->plugin, o->op, o->device, plan, &answer);
        if (r < 0)
                _exit(EXIT_FAILURE);
        for (size_t done = 0, size = strlen(answer); done < size;) {
                ssize_t n = write(answer_fd, answer + done, size - done);

                if (n < 0 && errno != EINTR)
                        _exit(EXIT_FAILURE);
                done += n > 0 ? (size_t) n : 0;
        }
        _exit(EXIT_SUCCESS);
}

static int operation_start(Operation *o, const char *plan)
{
        _cleanup_close_ int write_fd = -EBADF;
        pid_t parent = getpid();
        int pair[2], r;

        if (pipe2(pair, O_CLOEXEC) < 0)
                return negative_errno();
        o->answer_fd = pair[0];
        write_fd = pair[1];

        o->pid = fork();
        if (o->pid < 0)
                return negative_errno();
        if (o->pid == 0)
                child_main(o, plan, write_fd, parent);

        r = sd_event_add_child(o->host->event, &o->child_source, o->pid, WEXITED, on_exit_of_child, o);
        if (r < 0) {
                (void) kill(o->pid, SIGKILL);
                (void) waitpid(o->pid, NULL, 0);
                return r;
        }
        if (fcntl(o->answer_fd, F_SETFL, O_NONBLOCK) < 0)
                return negative_errno();
        r = sd_event_add_io(o->host->event, &o->answer_source, o->answer_fd, EPOLLIN, on_answer, o);
        if (r < 0)
                return r;
        return sd_event_add_time_relative(o->host->event, &o->timer, CLOCK_BOOTTIME, o->timeout,
                                          USEC_PER_MSEC, on_timeout, o);
}

typedef struct Parameters {
        const char *device, *plan;
        uint64_t preserved, timeout;
} Parameters;

static int call(sd_varlink *link, sd_json_variant *parameters, HostOp op)
{
        static const sd_json_dispatch_field with_plan[] = {
                { "device", SD_JSON_VARIANT_STRING, sd_json_dispatch_const_string,
                  offsetof(Parameters, device), SD_JSON_MANDATORY },
                { "plan", SD_JSON_VARIANT_STRING, sd_json_dispatch_const_string, offsetof(Parameters, plan),
                  SD_JSON_MANDATORY },
                { "timeoutUSec", _SD_JSON_VARIANT_TYPE_INVALID, sd_json_dispatch_uint64,
                  offsetof(Parameters, timeout), SD_JSON_NULLABLE },
                {}
        };
        static const sd_json_dispatch_field without_plan[] = {
                { "device", SD_JSON_VARIANT_STRING, sd_json_dispatch_const_string,
                  offsetof(Parameters, device), SD_JSON_MANDATORY },
                { "preserved", _SD_JSON_VARIANT_TYPE_INVALID, sd_json_dispatch_uint64,
                  offsetof(Parameters, preserved), SD_JSON_NULLABLE },
                { "timeoutUSec", _SD_JSON_VARIANT_TYPE_INVALID, sd_json_dispatch_uint64,
                  offsetof(Parameters, timeout), SD_JSON_NULLABLE },
                {}
        };
        Host *h = sd_varlink_server_get_userdata(sd_varlink_get_server(link));
        _cleanup_(operation_freep) Operation *o = NULL;
        Parameters p = { .preserved = UINT64_MAX, .timeout = TIMEOUT_DEFAULT_USEC };
        int r;

        r = sd_varlink_dispatch(link, parameters, op >= HOST_OP_REBIND ? with_plan : without_plan, &p);
        if (r != 0)
                return r;
        if (p.timeout == 0 || p.timeout > TIMEOUT_MAX_USEC)
                return sd_varlink_error_invalid_parameter_name(link, "timeoutUSec");
        if (p.plan && strlen(p.plan) >= LUVFIO_PLAN_SIZE)
                return sd_varlink_error_invalid_parameter_name(link, "plan");
        if (!h->plugin)
                return reply_error(link, VL_ERROR_PLUGIN("Failed"), "", h->load_error);

        o = calloc(1, sizeof(*o));
        if (!o)
                return -ENOMEM;
        o->host = h;
        o->op = op;
        o->answer_fd = -EBADF;
        o->timeout = p.timeout;
        r = luv_host_device_new(&h->options, p.device, p.preserved, luv_now_usec() + p.timeout, &o->device);
        if (r == -EINVAL)
                return sd_varlink_error_invalid_parameter_name(link, "device");
        if (r < 0)
                return r;

        /* rebind may wait for the device, recover may find it gone; all others need it. */
        if (!(h->plugin->capabilities & LUVFIO_CAPABILITY_NO_DEVICE) && op != HOST_OP_REBIND &&
            op != HOST_OP_RECOVER && !luv_host_device_present(o->device)) {
                if (op == HOST_OP_MATCH)
                        return sd_varlink_replybo(link, SD_JSON_BUILD_PAIR_INTEGER("score", 0));
                return reply_error(link, VL_ERROR_PLUGIN("Failed"), o->device->address,
                                   "there is no such device");
        }

        r = operation_start(o, p.plan);
        if (r < 0)
                return luv_log_error(r, "cannot start %s of plugin %s", luv_host_op_to_string(op),
                                     h->options.plugin);
        o->link = sd_varlink_ref(link);
        sd_varlink_set_userdata(link, TAKE_PTR(o));
        return 0;
}

#define DEFINE_METHOD(name, op)                                                                             \
        static int name(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,     \
                        void *userdata)                                                                     \
        {                                                                                                   \
                return call(link, parameters, op);                                                          \
        }                                                                                                   \
        struct swallow_semicolon

DEFINE_METHOD(method_match, HOST_OP_MATCH);
DEFINE_METHOD(method_preflight, HOST_OP_PREFLIGHT);
DEFINE_METHOD(method_quiesced, HOST_OP_QUIESCED);
DEFINE_METHOD(method_plan, HOST_OP_PLAN);
DEFINE_METHOD(method_rebind, HOST_OP_REBIND);
DEFINE_METHOD(method_verify, HOST_OP_VERIFY);
DEFINE_METHOD(method_recover, HOST_OP_RECOVER);

static int method_describe(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                           void *userdata)
{
        static const sd_json_dispatch_field none[] = { {} };
        Host *h = sd_varlink_server_get_userdata(sd_varlink_get_server(link));
        int r;

        r = sd_varlink_dispatch(link, parameters, none, NULL);
        if (r != 0)
                return r;
        if (!h->plugin)
                return reply_error(link, VL_ERROR_PLUGIN("Failed"), "", h->load_error);
        return sd_varlink_replybo(link, SD_JSON_BUILD_PAIR_STRING("name", h->plugin->name),
                                  SD_JSON_BUILD_PAIR_INTEGER("abi", h->plugin->abi));
}

static int on_idle(sd_event_source *s, uint64_t usec, void *userdata)
{
        Host *h = userdata;

        return h->n_connections == 0 ? sd_event_exit(h->event, 0) : 0;
}

static int arm_idle(Host *h)
{
        int r;

        if (!h->exit_on_idle)
                return 0;
        if (!h->idle)
                return sd_event_add_time_relative(h->event, &h->idle, CLOCK_MONOTONIC, IDLE_EXIT_USEC,
                                                  USEC_PER_SEC, on_idle, h);
        r = sd_event_source_set_time_relative(h->idle, IDLE_EXIT_USEC);
        if (r < 0)
                return r;
        return sd_event_source_set_enabled(h->idle, SD_EVENT_ONESHOT);
}

static int on_connect(sd_varlink_server *server, sd_varlink *link, void *userdata)
{
        Host *h = sd_varlink_server_get_userdata(server);

        h->n_connections++;
        sd_varlink_set_userdata(link, h);
        return 0;
}

/* Who does not wait for the answer any more wants the operation stopped. */
static void on_disconnect(sd_varlink_server *server, sd_varlink *link, void *userdata)
{
        Host *h = sd_varlink_server_get_userdata(server);
        void *state = sd_varlink_get_userdata(link);

        if (state && state != h)
                operation_free(state);
        h->n_connections--;
        if (h->n_connections == 0)
                (void) arm_idle(h);
}

static void host_done(Host *h)
{
        if (h->server)
                (void) sd_varlink_server_shutdown(h->server);
        sd_varlink_server_unref(h->server);
        sd_event_source_disable_unref(h->idle);
        sd_event_unref(h->event);
        free(h->load_error);
}

static int serve(Host *h, const char *listen_path)
{
        sigset_t set;
        int r;

        /* sd-event wants it blocked to be told of children. */
        (void) sigemptyset(&set);
        (void) sigaddset(&set, SIGCHLD);
        if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
                return luv_log_error(negative_errno(), "cannot block SIGCHLD");

        r = sd_event_default(&h->event);
        if (r < 0)
                return luv_log_error(r, "cannot make an event loop");
        r = sd_varlink_server_new(&h->server, SD_VARLINK_SERVER_ROOT_ONLY | SD_VARLINK_SERVER_MYSELF_ONLY);
        if (r < 0)
                return luv_log_error(r, "cannot make a varlink server");
        sd_varlink_server_set_userdata(h->server, h);
        (void) sd_varlink_server_set_connections_max(h->server, CONNECTIONS_MAX);
        r = sd_varlink_server_set_info(h->server, "luvfio", "luvfio-plugin-host", LUVFIO_VERSION, NULL);
        if (r >= 0)
                r = sd_varlink_server_add_interface(h->server, &vl_interface_org_luvfio_Plugin);
        if (r >= 0)
                r = sd_varlink_server_bind_method_many(h->server, "org.luvfio.Plugin.Describe",
                                                       method_describe, "org.luvfio.Plugin.Match",
                                                       method_match, "org.luvfio.Plugin.Preflight",
                                                       method_preflight, "org.luvfio.Plugin.Quiesced",
                                                       method_quiesced, "org.luvfio.Plugin.Plan",
                                                       method_plan, "org.luvfio.Plugin.Rebind",
                                                       method_rebind, "org.luvfio.Plugin.Verify",
                                                       method_verify, "org.luvfio.Plugin.Recover",
                                                       method_recover);
        if (r >= 0)
                r = sd_varlink_server_bind_connect(h->server, on_connect);
        if (r >= 0)
                r = sd_varlink_server_bind_disconnect(h->server, on_disconnect);
        if (r >= 0)
                r = sd_varlink_server_attach_event(h->server, h->event, 0);
        if (r < 0)
                return luv_log_error(r, "cannot set the varlink server up");

        if (listen_path) {
                r = sd_varlink_server_listen_address(h->server, listen_path, 0600);
                if (r < 0)
                        return luv_log_error(r, "cannot listen on %s", listen_path);
        } else {
                r = sd_varlink_server_listen_auto(h->server);
                if (r < 0)
                        return luv_log_error(r, "cannot take the socket that was passed");
                if (r == 0)
                        return luv_log_error(-ENOTCONN, "no socket was passed: run it from its socket unit, "
                                                        "or with --listen");
                h->exit_on_idle = true;
        }
        r = arm_idle(h);
        if (r < 0)
                return luv_log_error(r, "cannot make a timer");

        r = sd_event_loop(h->event);
        if (r < 0)
                return luv_log_error(r, "the event loop failed");
        return 0;
}

static void usage(FILE *f)
{
        fputs("Usage: luvfio-plugin-host [OPTION...] NAME\n"
              "\n"
              "Runs the device plugin NAME and serves it as org.luvfio.Plugin on the socket that systemd, "
              "or\n"
              "luvfiod --simulate, passes.\n"
              "\n"
              "     --listen=PATH      on this socket, until it is stopped\n"
              "     --check            load the plugin, say what it is, and end\n"
              "     --plugin-dir=DIR   where NAME.so is; also $LUVFIO_PLUGIN_DIR; default:\n"
              "                        " LUVFIO_PLUGINDIR "\n"
              "     --config=FILE      the plugin's configuration; also $LUVFIO_<NAME>_CONFIG; default:\n"
              "                        " LUVFIO_SYSCONFDIR "/luvfiod/NAME.json\n"
              "     --simulate         tell the plugin that it is a simulation\n"
              "     --sysfs=DIR        instead of /sys, for tests\n"
              "     --help             this text\n"
              "     --version          the version\n",
              f);
}

int main(int argc, char *argv[])
{
        enum {
                OPT_LISTEN = 256,
                OPT_CHECK,
                OPT_PLUGIN_DIR,
                OPT_CONFIG,
                OPT_SIMULATE,
                OPT_SYSFS,
                OPT_HELP,
                OPT_VERSION
        };
        static const struct option options[] = {
                { "listen", required_argument, NULL, OPT_LISTEN },
                { "check", no_argument, NULL, OPT_CHECK },
                { "plugin-dir", required_argument, NULL, OPT_PLUGIN_DIR },
                { "config", required_argument, NULL, OPT_CONFIG },
                { "simulate", no_argument, NULL, OPT_SIMULATE },
                { "sysfs", required_argument, NULL, OPT_SYSFS },
                { "help", no_argument, NULL, OPT_HELP },
                { "version", no_argument, NULL, OPT_VERSION },
                {},
        };
        _cleanup_(host_done) Host h = { .options = { .sysfs = "/sys" } };
        const char *plugin_dir = secure_getenv("LUVFIO_PLUGIN_DIR"), *listen_path = NULL;
        bool check = false;
        int c, r;

        if (!plugin_dir)
                plugin_dir = LUVFIO_PLUGINDIR;

        while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0)
                switch (c) {
                case OPT_LISTEN:
                        listen_path = optarg;
                        break;
                case OPT_CHECK:
                        check = true;
                        break;
                case OPT_PLUGIN_DIR:
                        plugin_dir = optarg;
                        break;
                case OPT_CONFIG:
                        h.options.config = optarg;
                        break;
                case OPT_SIMULATE:
                        h.options.simulate = true;
                        break;
                case OPT_SYSFS:
                        h.options.sysfs = optarg;
                        break;
                case OPT_HELP:
                        usage(stdout);
                        return EXIT_SUCCESS;
                case OPT_VERSION:
                        puts("luvfio-plugin-host " LUVFIO_VERSION);
                        return EXIT_SUCCESS;
                default:
                        usage(stderr);
                        return 2;
                }
        if (argc - optind != 1) {
                usage(stderr);
                return 2;
        }

        h.options.plugin = argv[optind];
        r = luv_host_plugin_load(plugin_dir, h.options.plugin, &h.plugin, &h.load_error);
        if (r < 0)
                luv_log(LOG_ERR, "%s", strempty(h.load_error));
        if (check) {
                if (r < 0)
                        return EXIT_FAILURE;
                printf("%s: plugin ABI %u, capabilities 0x%llx\n", h.plugin->name, h.plugin->abi,
                       (unsigned long long) h.plugin->capabilities);
                return EXIT_SUCCESS;
        }
        /* A name that is none cannot be asked for by anyone; every other failure is told to who asks. */
        if (!luv_plugin_name_valid(h.options.plugin))
                return 2;

        return serve(&h, listen_path) < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
