/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <getopt.h>
#include <signal.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>

#include "agents/agent-libvirt/libvirt-domain.h"
#include "agents/agent-libvirt/libvirt-private.h"
#include "config.h"
#include "util/log.h"
#include "util/string-util.h"

/* luvfio-libvirt(8). Exit codes as of luvfio-qemu. */

static void usage(FILE *f)
{
        (void) fputs("luvfio-libvirt --watch\n"
                     "luvfio-libvirt --domain NAME\n"
                     "luvfio-libvirt --hook DOMAIN OPERATION PART [...]\n"
                     "luvfio-libvirt --settle\n"
                     "luvfio-libvirt --tidy\n"
                     "\n"
                     "Takes domains of libvirt through live updates of the host's kernel.\n"
                     "\n"
                     "  --watch           starts an agent for each domain that is to take part\n"
                     "  --domain NAME     is one, for this domain\n"
                     "  --hook            says whether libvirt may start a domain, whose XML is on standard "
                     "input\n"
                     "  --settle          waits until all domains are there, and has libvirt start anew if "
                     "that is needed to\n"
                     "                    forget what they were started with\n"
                     "  --tidy            what is forgotten is taken out of libvirt's files; before it "
                     "starts\n"
                     "  -h, --help\n"
                     "  --version\n",
                     f);
}

static int on_signal(sd_event_source *s, const struct signalfd_siginfo *si, void *userdata)
{
        luv_qemu_machine_stop(userdata);
        return 0;
}

static int run_domain(const char *name)
{
        _cleanup_free_ char *dir = luv_strf(LIBVIRT_RUNTIME_DIR "/%s", name);
        QemuMachineConfig config = { .backend = &luv_qemu_of_libvirt, .name = name, .runtime_dir = dir };
        _cleanup_(luv_qemu_machine_freep) QemuMachine *m = NULL;
        sd_event *event = NULL;
        sigset_t signals;
        int r;

        if (!dir)
                return -ENOMEM;
        if (mkdir(LIBVIRT_RUNTIME_DIR, 0711) < 0 && errno != EEXIST)
                return luv_log_error(negative_errno(), "The folder " LIBVIRT_RUNTIME_DIR " cannot be made");
        /* Monitors end by themselves. */
        (void) signal(SIGCHLD, SIG_IGN);
        /* One that comes before the machine is there is heard when it is. */
        sigemptyset(&signals);
        sigaddset(&signals, SIGTERM);
        (void) sigprocmask(SIG_BLOCK, &signals, NULL);
        r = sd_event_new(&event);
        if (r < 0)
                return luv_log_error(r, "No event loop");
        config.event = event;
        r = luv_qemu_machine_new(&config, &m);
        if (r >= 0) {
                r = sd_event_add_signal(event, NULL, SIGTERM | SD_EVENT_SIGNAL_PROCMASK, on_signal, m);
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
        enum { WATCH = 256, DOMAIN, HOOK, MONITOR, SETTLE, TIDY };
        static const struct option options[] = {
                { "watch", no_argument, NULL, WATCH },
                { "domain", required_argument, NULL, DOMAIN },
                { "hook", no_argument, NULL, HOOK },
                { "monitor", required_argument, NULL, MONITOR },
                { "settle", no_argument, NULL, SETTLE },
                { "tidy", no_argument, NULL, TIDY },
                { "help", no_argument, NULL, 'h' },
                { "version", no_argument, NULL, 'V' },
                {},
        };
        const char *domain = NULL, *monitor = NULL;
        bool watch = false, hook = false, settle = false, tidy = false;
        int c, r;

        while ((c = getopt_long(argc, argv, "h", options, NULL)) >= 0)
                switch (c) {
                case WATCH:
                        watch = true;
                        break;
                case DOMAIN:
                        domain = optarg;
                        break;
                case HOOK:
                        hook = true;
                        break;
                case MONITOR:
                        monitor = optarg;
                        break;
                case SETTLE:
                        settle = true;
                        break;
                case TIDY:
                        tidy = true;
                        break;
                case 'h':
                        usage(stdout);
                        return 0;
                case 'V':
                        puts("luvfio-libvirt " LUVFIO_VERSION);
                        return 0;
                default:
                        return 2;
                }
        if (watch + hook + settle + tidy + (domain != NULL) + (monitor != NULL) != 1 ||
            (hook ? argc - optind < 3 : argc != optind)) {
                usage(stderr);
                return 2;
        }
        if (hook)
                return luv_libvirt_hook_run(argv[optind], argv[optind + 1], argv[optind + 2]);
        if (settle)
                return luv_libvirt_settle_run();
        if (tidy)
                return luv_libvirt_tidy(LIBVIRT_STATUS_DIR, true) < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
        if (watch)
                return luv_libvirt_watch_run();
        if (monitor)
                return luv_libvirt_monitor_run(monitor, STDIN_FILENO);
        if (!luv_machine_name_valid(domain)) {
                luv_log_error(-EINVAL, "\"%s\" is no name for a machine", domain);
                return 2;
        }
        r = run_domain(domain);
        return r == -ECHILD ? QEMU_MACHINE_FAILED : r < 0 ? EXIT_FAILURE : r;
}
