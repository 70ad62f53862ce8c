/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <pwd.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include "ctl/ctl.h"
#include "util/string-util.h"

/* Holds an inhibitor for as long as a command runs; takes it again when luvfiod is restarted meanwhile. */

#define RETRY_USEC USEC_PER_SEC

extern char **environ;

typedef struct Inhibitor {
        Stream stream;
        sd_event_source *retry;
        pid_t child;
        bool held_before, lost;
} Inhibitor;

static void inhibitor_done(Inhibitor *i)
{
        sd_event_source_unref(i->retry);
        sd_json_variant_unref(i->stream.call.parameters);
        sd_event_unref(i->stream.event);
}

static int on_child(sd_event_source *s, const siginfo_t *si, void *userdata)
{
        Inhibitor *i = userdata;

        i->child = 0;
        /* As a shell has it. */
        return sd_event_exit(i->stream.event,
                             si->si_code == CLD_EXITED ? si->si_status : 128 + si->si_status);
}

static ExitCode start_command(Inhibitor *i)
{
        char **command = i->stream.c->options.command;
        posix_spawnattr_t attributes;
        sigset_t none;
        int r;

        /* The command gets its signals itself. */
        (void) sigemptyset(&none);
        r = posix_spawnattr_init(&attributes);
        if (r == 0) {
                r = posix_spawnattr_setsigmask(&attributes, &none);
                if (r == 0)
                        r = posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
                if (r == 0)
                        r = posix_spawnp(&i->child, command[0], NULL, &attributes, command, environ);
                (void) posix_spawnattr_destroy(&attributes);
        }
        if (r != 0)
                return ctl_fail(i->stream.c, CTL_FAILED, "Cannot run %s: %s.", command[0], strerror(r));
        r = sd_event_add_child(i->stream.event, NULL, i->child, WEXITED, on_child, i);
        return r < 0 ? ctl_fail(i->stream.c, CTL_FAILED, "Cannot wait for %s: %s.", command[0], strerror(-r))
                     : CTL_DONE;
}

static void on_held(Stream *s, sd_json_variant *reply, bool last)
{
        Inhibitor *i = s->userdata;
        ExitCode code = CTL_DONE;

        if (i->lost)
                fputs("luvfioctl: updates are inhibited again.\n", s->c->err.f);
        i->lost = false;
        if (i->held_before)
                return;
        i->held_before = true;
        if (s->c->options.json != JSON_MODE_OFF)
                code = ctl_print_json(s->c, reply);
        if (code == CTL_DONE && s->c->options.command)
                code = start_command(i);
        else if (code == CTL_DONE && s->c->options.json == JSON_MODE_OFF) {
                fputs("Updates are inhibited until this command ends.\n", s->c->out.f);
                fflush(s->c->out.f);
        }
        if (code != CTL_DONE)
                (void) sd_event_exit(s->event, code);
}

static int on_retry(sd_event_source *source, uint64_t usec, void *userdata)
{
        Inhibitor *i = userdata;
        Stream *s = &i->stream;
        sd_varlink *link = NULL;

        ctl_disconnect(s->c);
        /* ctl_stream_start() would complain each time. */
        if (ctl_connect_address(s->c->options.socket, &link) >= 0) {
                sd_varlink_close_unref(link);
                if (ctl_stream_start(s) == CTL_DONE)
                        return 0;
        }
        (void) sd_event_source_set_time_relative(source, RETRY_USEC);
        return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static void on_lost(Stream *s, const char *error_id, sd_json_variant *parameters)
{
        Inhibitor *i = s->userdata;
        ExitCode code;

        if (i->held_before && streq(error_id, SD_VARLINK_ERROR_DISCONNECTED)) {
                if (!i->lost)
                        fputs("luvfioctl: luvfiod is gone; the inhibitor is taken again when it is back.\n",
                              s->c->err.f);
                i->lost = true;
                (void) sd_event_source_set_time_relative(i->retry, RETRY_USEC);
                (void) sd_event_source_set_enabled(i->retry, SD_EVENT_ONESHOT);
                return;
        }
        code = ctl_fail_error(s->c, error_id, parameters);
        /* With a command under way there is nothing to end for. */
        if (i->child <= 0)
                (void) sd_event_exit(s->event, code);
}

static int on_interrupt(sd_event_source *source, const struct signalfd_siginfo *si, void *userdata)
{
        Inhibitor *i = userdata;

        if (i->child <= 0)
                return sd_event_exit(i->stream.event, CTL_DONE);
        /* A terminal's Ctrl-C goes to both of us; a signal that was sent to us alone is passed on. */
        if (si->ssi_code == SI_USER || si->ssi_code == SI_QUEUE)
                (void) kill(i->child, (int) si->ssi_signo);
        return 0;
}

static char *default_who(void)
{
        const struct passwd *p = getpwuid(getuid());

        return p ? strdup(p->pw_name) : luv_strf("uid %u", (unsigned) getuid());
}

static char *default_why(char *const *command)
{
        char *why = command ? strdup("runs") : strdup("no reason was given");

        for (size_t i = 0; why && command && command[i]; i++) {
                char *more = luv_strf("%s %s", why, command[i]);

                free(why);
                why = more;
        }
        return why;
}

ExitCode ctl_inhibit(Ctl *c)
{
        _cleanup_(inhibitor_done) Inhibitor i = {
                .stream = { .c = c, .call.method = "Inhibit", .on_reply = on_held, .on_error = on_lost },
        };
        _cleanup_free_ char *who = NULL, *why = NULL;
        Stream *s = &i.stream;
        ExitCode code;
        int r;

        s->userdata = &i;
        who = c->options.who ? strdup(c->options.who) : default_who();
        why = c->options.why ? strdup(c->options.why) : default_why(c->options.command);
        if (!who || !why)
                return ctl_fail_oom(c);
        r = sd_json_buildo(&s->call.parameters, SD_JSON_BUILD_PAIR_STRING("who", who),
                           SD_JSON_BUILD_PAIR_STRING("why", why));
        if (r == -EINVAL)
                return ctl_fail(c, CTL_USAGE, "--who or --why is not UTF-8.");
        if (r >= 0)
                r = sd_event_new(&s->event);
        if (r >= 0)
                r = sd_event_add_signal(s->event, NULL, SIGINT | SD_EVENT_SIGNAL_PROCMASK, on_interrupt, &i);
        if (r >= 0)
                r = sd_event_add_signal(s->event, NULL, SIGTERM | SD_EVENT_SIGNAL_PROCMASK, on_interrupt,
                                        &i);
        /* sd-event wants it blocked for children. */
        if (r >= 0) {
                sigset_t child;

                (void) sigemptyset(&child);
                (void) sigaddset(&child, SIGCHLD);
                r = sigprocmask(SIG_BLOCK, &child, NULL) < 0 ? -errno : 0;
        }
        if (r >= 0)
                r = sd_event_add_time_relative(s->event, &i.retry, CLOCK_MONOTONIC, RETRY_USEC, 0, on_retry,
                                               &i);
        if (r >= 0)
                r = sd_event_source_set_enabled(i.retry, SD_EVENT_OFF);
        if (r < 0)
                return ctl_fail(c, CTL_FAILED, "Cannot set up the event loop: %s.", strerror(-r));
        code = ctl_stream_start(s);
        if (code != CTL_DONE)
                return code;
        r = sd_event_loop(s->event);
        ctl_disconnect(c);
        return r < 0 ? ctl_fail(c, CTL_FAILED, "The event loop failed: %s.", strerror(-r)) : (ExitCode) r;
}
