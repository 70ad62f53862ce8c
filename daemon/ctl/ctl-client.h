/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-varlink.h>

#include "ctl/ctl-agent.h"
#include "ctl/ctl-args.h"
#include "ctl/ctl-format.h"

/* What all commands share. */
typedef struct Ctl {
        Options options;
        Terminal out, err;
        sd_varlink *link; /* connected when it is first needed */
        Agent agent;      /* while a call waits for authentication */
} Ctl;

void ctl_done(Ctl *c);

/* These print what went wrong, to stderr, and give the exit code that says it. */
_printf_(3, 4) ExitCode ctl_fail(Ctl *c, ExitCode code, const char *format, ...);
ExitCode ctl_fail_oom(Ctl *c);
ExitCode ctl_fail_reply(Ctl *c, const char *bad_field);
/* An error that luvfiod answered, or the loss of it; with --json, also to stdout. */
ExitCode ctl_fail_error(Ctl *c, const char *error_id, sd_json_variant *parameters);

/* One JSON value to stdout, as --json says. */
ExitCode ctl_print_json(Ctl *c, sd_json_variant *v);

/* To a path or an abstract socket (@name), or a URL as ssh-unix:host:/path; says nothing. */
int ctl_connect_address(const char *address, sd_varlink **ret);
ExitCode ctl_connect(Ctl *c);
void ctl_disconnect(Ctl *c);

/* A method of org.luvfio.Host, what is said to it, and fds that go with it (and stay the caller's). */
typedef struct Call {
        const char *method;
        sd_json_variant *parameters;
        const int *fds;
        size_t n_fds;
} Call;

/*
 * Calls and waits. If luvfiod wants the caller to authenticate, the call is made again with an agent. *RET
 * is a new reference.
 */
ExitCode ctl_call(Ctl *c, const Call *call, sd_json_variant **ret);

/* A method of several replies, followed in an event loop. */
typedef struct Stream Stream;
struct Stream {
        Ctl *c;
        sd_event *event;
        Call call;
        bool interactive; /* it was called again with allowInteractiveAuthentication */

        /* Ends the loop with sd_event_exit(CODE). LAST: no more replies come. */
        void (*on_reply)(Stream *s, sd_json_variant *reply, bool last);
        /* ERROR_ID is luvfiod's or sd-varlink's; called once, then nothing more comes. */
        void (*on_error)(Stream *s, const char *error_id, sd_json_variant *parameters);
        void *userdata;
};

ExitCode ctl_stream_start(Stream *s);
