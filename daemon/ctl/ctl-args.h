/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "util/macro.h"

/* Promised to scripts by luvfioctl(1). */
typedef enum ExitCode {
        CTL_DONE = 0,
        CTL_FAILED = 1,
        CTL_USAGE = 2,
        CTL_BLOCKED = 3,
        CTL_ABORTED = 4,
        CTL_STRANDED = 5,
        CTL_UNREACHABLE = 6,
        CTL_FORBIDDEN = 7,
} ExitCode;

typedef enum Verb {
        VERB_STATUS,
        VERB_CHECK,
        VERB_STAGE,
        VERB_UPDATE,
        VERB_ABORT,
        VERB_MACHINES,
        VERB_DEVICES,
        VERB_MONITOR,
        VERB_INHIBIT,
        VERB_HISTORY,
        VERB_ANALYZE,
        VERB_DISCARD,
        VERB_HELP,
        VERB_VERSION,
        _VERB_MAX,
        _VERB_INVALID = -EINVAL,
} Verb;

const char *verb_to_string(Verb v);
Verb verb_from_string(const char *s);

typedef enum JsonMode {
        JSON_MODE_OFF,
        JSON_MODE_SHORT,  /* one line each */
        JSON_MODE_PRETTY, /* for people */
        JSON_MODE_SEQ,    /* RFC 7464 */
        _JSON_MODE_MAX,
        _JSON_MODE_INVALID = -EINVAL,
} JsonMode;

const char *json_mode_to_string(JsonMode m);
JsonMode json_mode_from_string(const char *s);

/* Strings are the command line's. */
typedef struct Options {
        Verb verb;
        JsonMode json;
        const char *socket;
        bool ask_password;

        const char *argument; /* KERNEL, UPDATE or MACHINE */
        char **command;       /* inhibit's, NULL-terminated; NULL: none */
        const char *initrd;
        const char *command_line; /* NULL: the running kernel's */
        bool dry_run;
        uint64_t deadline_usec; /* 0: luvfiod's own */
        char **sacrifice;
        const char *fallback; /* NULL: luvfiod's own */
        const char *who, *why;
        uint64_t lines; /* 0: luvfiod's own */
        const char *svg;
} Options;

/*
 * 0, or -EINVAL with a sentence for the user in *ret_reason. `--help` and `--version` win over what comes
 * after them. JSON_TERMINAL says whether a bare --json is for people.
 */
int ctl_parse_arguments(int argc, char *argv[], bool json_terminal, Options *ret, char **ret_reason);
void ctl_options_done(Options *o);
void ctl_help(FILE *f);
