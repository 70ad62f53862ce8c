/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <getopt.h>
#include <locale.h>
#include <signal.h>

#include "config.h"
#include "manager.h"
#include "util/log.h"
#include "util/string-util.h"

#define RUNTIME_DIR "/run/luvfiod"
#define STATE_DIR "/var/lib/luvfiod"
#define RESUME_DEADLINE_USEC (60 * USEC_PER_SEC)

static void help(void)
{
        printf("luvfiod [OPTIONS...]\n\n"
               "Replaces the kernel of this host under its running machines.\n\n"
               "      --simulate               No kernel support and no privileges: the jump is a re-exec\n"
               "      --simulate-fail=OP:N[+][:ERRNO][,...]\n"
               "                               Let the N-th operation of a kind fail\n"
               "      --runtime-dir=FOLDER     Sockets and notes [" RUNTIME_DIR "]\n"
               "      --state-dir=FOLDER       Reports of past updates [" STATE_DIR "]\n"
               "      --plugin-host=PROGRAM    Runs plugins, with --simulate\n"
               "                               [" LUVFIO_LIBEXECDIR "/luvfio-plugin-host]\n"
               "      --plugins=NAME,...       Plugins that it can run, with --simulate [null]\n"
               "      --resume-deadline=TIME   How long a VMM may take to come back [60s]\n"
               "      --quota=WHAT:N,...       What one user may have: machines, fds, bytes\n"
               "  -h, --help                   This text\n"
               "      --version                The version\n\n"
               "See luvfiod(8).\n");
}

static int parse_plugins(const char *text, char ***ret)
{
        _cleanup_free_ char *copy = strdup(text);
        char *rest = copy, *name;
        int r;

        if (!copy)
                return -ENOMEM;
        while ((name = strsep(&rest, ","))) {
                if (!*name)
                        continue;
                if (!luv_machine_name_valid(name))
                        return -EINVAL;
                r = luv_strv_extend(ret, name);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int parse_quota(const char *text, MachineQuota *q)
{
        _cleanup_free_ char *copy = strdup(text);
        char *rest = copy, *item;

        if (!copy)
                return -ENOMEM;
        while ((item = strsep(&rest, ","))) {
                char *colon = strchr(item, ':');
                uint64_t *what, n;

                if (!colon)
                        return -EINVAL;
                *colon = 0;
                what = streq(item, "machines") ? &q->machines
                       : streq(item, "fds")    ? &q->fds
                       : streq(item, "bytes")  ? &q->bytes
                                               : NULL;
                if (!what || luv_parse_u64(colon + 1, &n) < 0)
                        return -EINVAL;
                *what = n;
        }
        return 0;
}

enum {
        ARG_SIMULATE = 0x100,
        ARG_SIMULATE_FAIL,
        ARG_RUNTIME_DIR,
        ARG_STATE_DIR,
        ARG_PLUGIN_HOST,
        ARG_PLUGINS,
        ARG_RESUME_DEADLINE,
        ARG_QUOTA,
        ARG_VERSION,
};

/* 1: go on, 0: done, negative: usage. */
static int parse_arguments(int argc, char **argv, ManagerOptions *o)
{
        static const struct option options[] = {
                { "simulate", no_argument, NULL, ARG_SIMULATE },
                { "simulate-fail", required_argument, NULL, ARG_SIMULATE_FAIL },
                { "runtime-dir", required_argument, NULL, ARG_RUNTIME_DIR },
                { "state-dir", required_argument, NULL, ARG_STATE_DIR },
                { "plugin-host", required_argument, NULL, ARG_PLUGIN_HOST },
                { "plugins", required_argument, NULL, ARG_PLUGINS },
                { "resume-deadline", required_argument, NULL, ARG_RESUME_DEADLINE },
                { "quota", required_argument, NULL, ARG_QUOTA },
                { "help", no_argument, NULL, 'h' },
                { "version", no_argument, NULL, ARG_VERSION },
                {},
        };
        bool plugins = false;
        int c, r;

        while ((c = getopt_long(argc, argv, "h", options, NULL)) >= 0)
                switch (c) {
                case ARG_SIMULATE:
                        o->simulate = true;
                        break;
                case ARG_SIMULATE_FAIL:
                        o->simulate_fail = optarg;
                        break;
                case ARG_RUNTIME_DIR:
                        o->runtime_dir = optarg;
                        break;
                case ARG_STATE_DIR:
                        o->state_dir = optarg;
                        break;
                case ARG_PLUGIN_HOST:
                        o->plugin_host = optarg;
                        break;
                case ARG_PLUGINS:
                        o->plugins = luv_strv_free(o->plugins);
                        r = parse_plugins(optarg, &o->plugins);
                        if (r < 0)
                                return luv_log_error(r, "--plugins=%s", optarg);
                        plugins = true;
                        break;
                case ARG_RESUME_DEADLINE:
                        r = luv_parse_timespan(optarg, &o->resume_deadline_usec);
                        if (r >= 0 && o->resume_deadline_usec == 0)
                                r = -ERANGE;
                        if (r < 0)
                                return luv_log_error(r, "--resume-deadline=%s", optarg);
                        break;
                case ARG_QUOTA:
                        r = parse_quota(optarg, &o->quota);
                        if (r < 0)
                                return luv_log_error(r, "--quota=%s", optarg);
                        break;
                case 'h':
                        help();
                        return 0;
                case ARG_VERSION:
                        printf("luvfiod " LUVFIO_VERSION "\n");
                        return 0;
                default:
                        return -EINVAL;
                }

        if (optind < argc) {
                luv_log(LOG_ERR, "luvfiod takes no arguments, only options: %s", argv[optind]);
                return -EINVAL;
        }
        if (o->simulate_fail && !o->simulate) {
                luv_log(LOG_ERR, "--simulate-fail= needs --simulate");
                return -EINVAL;
        }
        if (o->simulate && streq(o->runtime_dir, RUNTIME_DIR)) {
                luv_log(LOG_ERR, "--simulate needs a --runtime-dir= of its own");
                return -EINVAL;
        }
        if (!plugins)
                return luv_strv_extend(&o->plugins, "null") < 0 ? -ENOMEM : 1;
        return 1;
}

int main(int argc, char **argv)
{
        ManagerOptions options = {
                .runtime_dir = RUNTIME_DIR,
                .state_dir = STATE_DIR,
                .plugin_host = LUVFIO_LIBEXECDIR "/luvfio-plugin-host",
                .resume_deadline_usec = RESUME_DEADLINE_USEC,
                .quota = LUVFIO_QUOTA_DEFAULT,
        };
        Manager *m = NULL;
        int r;

        (void) setlocale(LC_ALL, "C.UTF-8");
        /* Peers go when they like. */
        (void) signal(SIGPIPE, SIG_IGN);
        r = parse_arguments(argc, argv, &options);
        if (r > 0) {
                r = luv_manager_new(&options, argv, &m);
                if (r >= 0)
                        r = luv_manager_run(m);
                luv_manager_free(m);
                r = r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
        } else {
                r = r < 0 ? 2 : EXIT_SUCCESS;
        }
        luv_strv_free(options.plugins);
        return r;
}
