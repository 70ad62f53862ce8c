/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <getopt.h>
#include <signal.h>
#include <systemd/sd-daemon.h>

#include "agents/qemu-config.h"
#include "agents/qemu-machine.h"
#include "config.h"
#include "util/log.h"
#include "util/string-util.h"

/* luvfio-qemu(8). Exit codes: 0 the machine has ended, 1 it may be tried again, 2 usage, 3 QEMU has failed.
 */

#define STOP_USEC (60 * USEC_PER_SEC)

static void usage(FILE *f)
{
        (void) fputs("luvfio-qemu --name NAME [OPTIONS] [--] QEMU [ARGUMENTS...]\n"
                     "luvfio-qemu --name NAME [OPTIONS] --config FILE\n"
                     "luvfio-qemu --name NAME [OPTIONS] --monitor SOCKET\n"
                     "\n"
                     "Runs a machine of QEMU, or stands beside one that runs already, and takes it through\n"
                     "live updates of the host's kernel.\n"
                     "\n"
                     "  --name NAME              of the machine, unique on the host\n"
                     "  --config FILE            QEMU's command line: the program, then an option and its\n"
                     "                           value a line\n"
                     "  --monitor SOCKET         of a QEMU that runs (QMP); nobody else may be connected\n"
                     "  --runtime-dir DIR        for sockets, this machine's alone\n"
                     "                           (default: /run/luvfio-qemu/NAME)\n"
                     "  --secret-file FILE       keeps the machine's secret, for one that comes back in\n"
                     "                           another unit\n"
                     "  --stop-timeout SECONDS   how long the guest may take to power itself off\n"
                     "                           (default: 60)\n"
                     "  -h, --help\n"
                     "  --version\n",
                     f);
}

static int on_signal(sd_event_source *s, const struct signalfd_siginfo *si, void *userdata)
{
        luv_qemu_machine_stop(userdata);
        return 0;
}

static int run(QemuMachineConfig *config)
{
        _cleanup_(luv_qemu_machine_freep) QemuMachine *m = NULL;
        sd_event *event = NULL;
        sigset_t signals;
        int r;

        /* One that comes before the machine is there is heard when it is. */
        sigemptyset(&signals);
        sigaddset(&signals, SIGTERM);
        sigaddset(&signals, SIGINT);
        (void) sigprocmask(SIG_BLOCK, &signals, NULL);
        r = sd_event_new(&event);
        if (r < 0)
                return luv_log_error(r, "No event loop");
        config->event = event;
        r = luv_qemu_machine_new(config, &m);
        if (r >= 0) {
                r = sd_event_add_signal(event, NULL, SIGTERM | SD_EVENT_SIGNAL_PROCMASK, on_signal, m);
                if (r >= 0)
                        r = sd_event_add_signal(event, NULL, SIGINT | SD_EVENT_SIGNAL_PROCMASK, on_signal,
                                                m);
                if (r < 0)
                        luv_log_error(r, "Signals cannot be waited for");
        }
        if (r >= 0) {
                (void) sd_notify(0, "READY=1");
                r = sd_event_loop(event);
        }
        m = luv_qemu_machine_free(m);
        sd_event_unref(event);
        return r;
}

int main(int argc, char **argv)
{
        enum { NAME = 256, CONFIG, MONITOR, RUNTIME, SECRET, STOP };
        static const struct option options[] = {
                { "name", required_argument, NULL, NAME },
                { "config", required_argument, NULL, CONFIG },
                { "monitor", required_argument, NULL, MONITOR },
                { "runtime-dir", required_argument, NULL, RUNTIME },
                { "secret-file", required_argument, NULL, SECRET },
                { "stop-timeout", required_argument, NULL, STOP },
                { "help", no_argument, NULL, 'h' },
                { "version", no_argument, NULL, 'V' },
                {},
        };
        QemuMachineConfig config = { .backend = &luv_qemu_own, .stop_usec = STOP_USEC };
        _cleanup_free_ char *runtime_dir = NULL;
        _cleanup_strv_ char **configured = NULL;
        const char *file = NULL;
        int c, r = 0;

        while (r >= 0 && (c = getopt_long(argc, argv, "+h", options, NULL)) >= 0)
                switch (c) {
                case NAME:
                        config.name = optarg;
                        break;
                case CONFIG:
                        file = optarg;
                        break;
                case MONITOR:
                        config.monitor = optarg;
                        break;
                case RUNTIME:
                        config.runtime_dir = optarg;
                        break;
                case SECRET:
                        config.secret_file = optarg;
                        break;
                case STOP:
                        r = luv_parse_timespan(optarg, &config.stop_usec);
                        if (r < 0)
                                luv_log_error(r, "--stop-timeout %s", optarg);
                        break;
                case 'h':
                        usage(stdout);
                        return 0;
                case 'V':
                        puts("luvfio-qemu " LUVFIO_VERSION);
                        return 0;
                default:
                        r = -EINVAL;
                }
        if (r < 0)
                return 2;
        if (!config.name || !luv_machine_name_valid(config.name)) {
                luv_log_error(-EINVAL, "A name for the machine is wanted (--name)");
                return 2;
        }
        if ((config.monitor != NULL) + (file != NULL) + (optind < argc) != 1) {
                luv_log_error(-EINVAL, "Wanted is a command line, or --config, or --monitor");
                return 2;
        }
        if (file) {
                r = luv_qemu_config_read(file, &configured);
                if (r < 0) {
                        luv_log_error(r, "No command line of QEMU in %s", file);
                        return 2;
                }
                config.argv = configured;
        } else if (optind < argc)
                config.argv = argv + optind;
        if (!config.runtime_dir) {
                runtime_dir = luv_strf("/run/luvfio-qemu/%s", config.name);
                if (!runtime_dir)
                        return EXIT_FAILURE;
                config.runtime_dir = runtime_dir;
        }
        r = run(&config);
        return r == -ECHILD ? QEMU_MACHINE_FAILED : r < 0 ? EXIT_FAILURE : r;
}
