/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <syslog.h>

#include "util/macro.h"

/*
 * One message, once: to the journal with fields if stderr is the journal's, else a line on stderr that
 * begins with the priority as `<N>` if stderr is no terminal.
 */

typedef struct LogFields {
        const char *message_id; /* 32 hex digits, see report/messages.h */
        const char *update_id;
        const char *session; /* name of a LUO session */
        const char *machine; /* LUVFIO_VM= */
        const char *device;  /* PCI address */
        const char *state;
        const char *plugin;
        uint64_t duration_usec; /* 0: none */
        int error;              /* -errno or 0; the text is not added to the message */
} LogFields;

/* Messages above this priority are dropped; LOG_INFO at first, or $LUVFIO_LOG_LEVEL (0..7). */
void luv_log_set_max_level(int level);
int luv_log_get_max_level(void);

/* FIELDS may be NULL. Keeps errno. */
_printf_(3, 4) void luv_log_struct(int priority, const LogFields *fields, const char *format, ...);
/* Logs "MESSAGE: strerror" with ERRNO= and returns ERROR (negative), for `return luv_log_error(r, ...)`. */
_printf_(3, 4) int luv_log_errno(int priority, int error, const char *format, ...);

#define luv_log(priority, ...) luv_log_struct((priority), NULL, __VA_ARGS__)
#define luv_log_debug(...) luv_log(LOG_DEBUG, __VA_ARGS__)
#define luv_log_info(...) luv_log(LOG_INFO, __VA_ARGS__)
#define luv_log_warning(...) luv_log(LOG_WARNING, __VA_ARGS__)
#define luv_log_error(error, ...) luv_log_errno(LOG_ERR, (error), __VA_ARGS__)
