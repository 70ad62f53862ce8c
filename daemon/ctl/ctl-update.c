/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>

#include "ctl/ctl.h"
#include "ctl/ctl-show.h"
#include "util/string-util.h"
#include "util/time-util.h"

/* check, stage, update and monitor: what takes a kernel, and what follows an update. */

#define REPAINT_USEC (200 * USEC_PER_MSEC)
#define CLEAR_LINE "\r\033[K"

typedef struct Follower {
        Stream stream;
        char *state; /* of the last reply */
        char *line;  /* what the live line says; NULL: there is none */
        uint64_t started_usec;
        sd_event_source *timer;
        bool clock; /* lines begin with the time of day, not with the time since the begin */
} Follower;

static void follower_done(Follower *f)
{
        sd_event_source_unref(f->timer);
        sd_json_variant_unref(f->stream.call.parameters);
        sd_event_unref(f->stream.event);
        free(f->state);
        free(f->line);
}

static ExitCode open_image(Ctl *c, const char *what, const char *path, int *ret)
{
        _cleanup_close_ int fd = -EBADF;
        struct stat st;

        fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
        if (fd < 0 || fstat(fd, &st) < 0)
                return ctl_fail(c, CTL_FAILED, "Cannot open the %s %s: %s.", what, path, strerror(errno));
        if (!S_ISREG(st.st_mode))
                return ctl_fail(c, CTL_FAILED, "The %s %s is no file.", what, path);
        *ret = TAKE_FD(fd);
        return CTL_DONE;
}

typedef struct Images {
        int fds[2];
        size_t n;
} Images;

static void images_done(Images *i)
{
        for (size_t k = 0; k < i->n; k++)
                safe_close(i->fds[k]);
}

/* What Check, Stage and Update have in common. */
static ExitCode kernel_parameters(Ctl *c, Images *images, sd_json_variant **ret)
{
        const Options *o = &c->options;
        ExitCode code = CTL_DONE;
        int r = 0;

        if (o->argument) {
                code = open_image(c, "kernel", o->argument, &images->fds[images->n]);
                if (code != CTL_DONE)
                        return code;
                r = sd_json_variant_set_field_unsigned(ret, "kernelFileDescriptor", images->n++);
        }
        if (r >= 0 && o->initrd) {
                code = open_image(c, "initrd", o->initrd, &images->fds[images->n]);
                if (code != CTL_DONE)
                        return code;
                r = sd_json_variant_set_field_unsigned(ret, "initrdFileDescriptor", images->n++);
        }
        if (r >= 0 && o->command_line)
                r = sd_json_variant_set_field_string(ret, "commandLine", o->command_line);
        if (r >= 0 && o->sacrifice)
                r = sd_json_variant_set_field_strv(ret, "sacrifice", o->sacrifice);
        if (r >= 0 && o->dry_run)
                r = sd_json_variant_set_field_boolean(ret, "dryRun", true);
        if (r >= 0 && o->deadline_usec > 0)
                r = sd_json_variant_set_field_unsigned(ret, "deadlineUSec", o->deadline_usec);
        if (r >= 0 && o->fallback)
                r = sd_json_variant_set_field_string(ret, "fallback", o->fallback);
        if (r == -EINVAL)
                return ctl_fail(c, CTL_USAGE, "The command line is not UTF-8.");
        return r < 0 ? ctl_fail_oom(c) : CTL_DONE;
}

static ExitCode run_check(Ctl *c, sd_json_variant *parameters, const Images *images)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL;
        _cleanup_free_ Finding *findings = NULL;
        sd_json_variant *ready;
        const char *bad;
        ExitCode code;
        size_t n = 0;

        code = ctl_call(c,
                        &(Call) { .method = "Check",
                                  .parameters = parameters,
                                  .fds = images->fds,
                                  .n_fds = images->n },
                        &v);
        if (code != CTL_DONE)
                return code;
        ready = sd_json_variant_by_key(v, "ready");
        if (!ready || !sd_json_variant_is_boolean(ready))
                return ctl_fail_reply(c, "ready");
        if (c->options.json != JSON_MODE_OFF)
                code = ctl_print_json(c, v);
        else if (ctl_parse_findings(v, &findings, &n, &bad) < 0)
                code = ctl_fail_reply(c, bad);
        else if (ctl_show_findings(&c->out, findings, n) < 0)
                code = ctl_fail_oom(c);
        if (code != CTL_DONE)
                return code;
        return sd_json_variant_boolean(ready) ? CTL_DONE : CTL_BLOCKED;
}

/* The line at the bottom of a terminal, painted over until it is overtaken. */
static void paint(Follower *f)
{
        const Terminal *t = &f->stream.c->out;
        char since[CTL_FORMAT_MAX];
        _cleanup_free_ char *line = NULL;
        size_t used = 0, room = t->columns - 1;

        if (!f->line)
                return;
        line = luv_strf("%s  %s", f->line, ctl_format_usec(since, luv_now_usec() - f->started_usec));
        if (!line)
                return;
        fputs(CLEAR_LINE, t->f);
        fputs(ctl_style(t, STYLE_DIM), t->f);
        for (const char *p = line; *p != '\0'; p++) {
                if (((unsigned char) *p & 0xc0) != 0x80 && ++used > room)
                        break;
                fputc(*p, t->f);
        }
        fputs(ctl_style_off(t, STYLE_DIM), t->f);
        fflush(t->f);
}

static void unpaint(Follower *f)
{
        if (f->line)
                fputs(CLEAR_LINE, f->stream.c->out.f);
        free(f->line);
        f->line = NULL;
}

static int on_repaint(sd_event_source *s, uint64_t usec, void *userdata)
{
        Follower *f = userdata;

        paint(f);
        (void) sd_event_source_set_time_relative(s, REPAINT_USEC);
        return sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
}

static void print_line(Follower *f, const char *state, const char *text)
{
        Ctl *c = f->stream.c;
        const Terminal *t = &c->out;
        char stamp[CTL_FORMAT_MAX] = "";
        uint64_t now = luv_now_usec() - f->started_usec;

        if (f->clock) {
                time_t seconds = time(NULL);
                struct tm tm;

                if (localtime_r(&seconds, &tm))
                        (void) strftime(stamp, sizeof(stamp), "%H:%M:%S", &tm);
        } else
                snprintf(stamp, sizeof(stamp), "%9.3f s", (double) now / (double) USEC_PER_SEC);
        fprintf(t->f, "%s%s%s  %s%-12s%s  %s\n", ctl_style(t, STYLE_DIM), stamp, ctl_style_off(t, STYLE_DIM),
                ctl_style(t, STYLE_BOLD), state, ctl_style_off(t, STYLE_BOLD), text);
        fflush(t->f);
}

/* A changed state and everything that is said is a line of its own; mere counting is the live line's. */
static ExitCode show_progress(Follower *f, const Progress *p)
{
        Ctl *c = f->stream.c;
        _cleanup_free_ char *text = ctl_progress_text(p), *state = ctl_clean(p->state), *line = NULL;
        bool changed = !f->state || !streq(f->state, p->state),
             says = (p->message && !streq(p->message, p->state)) || p->machine_state;
        int r;

        if (!text || !state)
                return ctl_fail_oom(c);
        unpaint(f);
        /* That it is over is said at the end. */
        if (says || (changed && (f->clock || !streq(p->state, "idle"))))
                print_line(f, state, says || *text != '\0' ? text : ctl_state_description(p->state));
        if (c->out.live && !streq(p->state, "idle")) {
                line = luv_strf("%s: %s%s%s", state, ctl_state_description(p->state), says ? "" : " ",
                                says ? "" : text);
                if (!line)
                        return ctl_fail_oom(c);
                f->line = TAKE_PTR(line);
                if (f->timer)
                        paint(f);
        }
        r = luv_free_and_strdup(&f->state, p->state);
        return r < 0 ? ctl_fail_oom(c) : CTL_DONE;
}

static ExitCode result_code(const Report *r)
{
        if (streq(r->result, "done"))
                return CTL_DONE;
        return streq(r->result, "stranded") ? CTL_STRANDED : CTL_ABORTED;
}

/* The last reply of Stage and Update. */
static ExitCode show_end(Follower *f, const Progress *p)
{
        Ctl *c = f->stream.c;
        ExitCode code = CTL_DONE;
        bool text = c->options.json == JSON_MODE_OFF;

        if (c->options.verb == VERB_STAGE) {
                if (text)
                        fputs("Staged: 'luvfioctl update' replaces the kernel, 'luvfioctl abort' gives it "
                              "up.\n",
                              c->out.f);
                return CTL_DONE;
        }
        if (c->options.dry_run) {
                if (text)
                        fputs("Dry run: the update was checked and staged, and taken back; all machines "
                              "run.\n",
                              c->out.f);
                return CTL_DONE;
        }
        if (!p->has_report)
                return CTL_DONE;
        code = result_code(&p->report);
        if (text && ctl_show_result(&c->out, &p->report) < 0)
                return ctl_fail_oom(c);
        return code;
}

static void on_follow_reply(Stream *s, sd_json_variant *reply, bool last)
{
        Follower *f = s->userdata;
        _cleanup_(ctl_progress_done) Progress p = {};
        ExitCode code = CTL_DONE;
        const char *bad;

        if (ctl_parse_progress(reply, &p, &bad) < 0) {
                unpaint(f);
                code = ctl_fail_reply(s->c, bad);
                (void) sd_event_exit(s->event, code);
                return;
        }
        if (s->c->options.json != JSON_MODE_OFF) {
                code = ctl_print_json(s->c, reply);
                if (code == CTL_DONE && luv_free_and_strdup(&f->state, p.state) < 0)
                        code = ctl_fail_oom(s->c);
        } else
                code = show_progress(f, &p);

        if (code == CTL_DONE && s->c->options.verb == VERB_MONITOR) {
                if (s->c->options.json == JSON_MODE_OFF && p.has_report &&
                    ctl_show_result(&s->c->out, &p.report) < 0)
                        code = ctl_fail_oom(s->c);
                else if (!last)
                        return;
        } else if (code == CTL_DONE && last) {
                unpaint(f);
                code = show_end(f, &p);
        } else if (code == CTL_DONE)
                return;
        (void) sd_event_exit(s->event, code);
}

static void on_follow_error(Stream *s, const char *error_id, sd_json_variant *parameters)
{
        Follower *f = s->userdata;
        ExitCode code;

        unpaint(f);
        if (streq(error_id, SD_VARLINK_ERROR_DISCONNECTED) && f->state && streq(f->state, "handing_over")) {
                if (s->c->options.json == JSON_MODE_OFF)
                        fputs("The connection ended with the old kernel, as it must. When the host is back, "
                              "'luvfioctl history' says how it went\nand 'luvfioctl analyze' where the time "
                              "went.\n",
                              s->c->out.f);
                code = CTL_DONE;
        } else if (streq(error_id, SD_VARLINK_ERROR_DISCONNECTED) && s->c->options.verb == VERB_UPDATE &&
                   f->state)
                code = ctl_fail(s->c, CTL_UNREACHABLE,
                                "The connection to luvfiod is lost in state %s. 'luvfioctl status' says "
                                "where the update is.",
                                f->state);
        else
                code = ctl_fail_error(s->c, error_id, parameters);
        (void) sd_event_exit(s->event, code);
}

static int on_interrupt(sd_event_source *source, const struct signalfd_siginfo *si, void *userdata)
{
        Follower *f = userdata;
        Ctl *c = f->stream.c;

        unpaint(f);
        if (c->options.verb == VERB_MONITOR)
                return sd_event_exit(f->stream.event, CTL_DONE);
        (void) ctl_fail(c, CTL_FAILED,
                        "Interrupted: the update goes on unwatched. 'luvfioctl monitor' follows it, "
                        "'luvfioctl abort' gives it up.");
        return sd_event_exit(f->stream.event, CTL_FAILED);
}

static ExitCode follow(Follower *f)
{
        Stream *s = &f->stream;
        ExitCode code;
        int r;

        f->started_usec = luv_now_usec();
        s->on_reply = on_follow_reply;
        s->on_error = on_follow_error;
        s->userdata = f;
        r = sd_event_new(&s->event);
        if (r >= 0)
                r = sd_event_add_signal(s->event, NULL, SIGINT | SD_EVENT_SIGNAL_PROCMASK, on_interrupt, f);
        if (r >= 0)
                r = sd_event_add_signal(s->event, NULL, SIGTERM | SD_EVENT_SIGNAL_PROCMASK, on_interrupt, f);
        if (r >= 0 && s->c->out.live && s->c->options.json == JSON_MODE_OFF)
                r = sd_event_add_time_relative(s->event, &f->timer, CLOCK_MONOTONIC, REPAINT_USEC, 0,
                                               on_repaint, f);
        if (r < 0)
                return ctl_fail(s->c, CTL_FAILED, "Cannot set up the event loop: %s.", strerror(-r));
        code = ctl_stream_start(s);
        if (code != CTL_DONE)
                return code;
        r = sd_event_loop(s->event);
        ctl_disconnect(s->c);
        return r < 0 ? ctl_fail(s->c, CTL_FAILED, "The event loop failed: %s.", strerror(-r)) : (ExitCode) r;
}

ExitCode ctl_update(Ctl *c)
{
        _cleanup_(images_done) Images images = { .fds = { -EBADF, -EBADF } };
        _cleanup_(follower_done) Follower f = { .stream.c = c };
        ExitCode code;

        code = kernel_parameters(c, &images, &f.stream.call.parameters);
        if (code != CTL_DONE)
                return code;
        if (c->options.verb == VERB_CHECK)
                return run_check(c, f.stream.call.parameters, &images);
        f.stream.call.method = c->options.verb == VERB_STAGE ? "Stage" : "Update";
        f.stream.call.fds = images.fds;
        f.stream.call.n_fds = images.n;
        return follow(&f);
}

ExitCode ctl_monitor(Ctl *c)
{
        _cleanup_(follower_done)
                        Follower f = { .stream = { .c = c, .call.method = "Monitor" }, .clock = true };

        return follow(&f);
}
