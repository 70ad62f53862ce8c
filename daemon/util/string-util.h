/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <stdarg.h>

#include "util/macro.h"

/* A new string, NULL if out of memory. */
_printf_(1, 2) char *luv_strf(const char *format, ...);
_printf_(1, 0) char *luv_strfv(const char *format, va_list ap);
/* For `char **ret_reason`: sets it (if not NULL) to a new string, NULL if out of memory. Returns ERROR. */
_printf_(3, 4) int luv_reason(char **ret_reason, int error, const char *format, ...);

/* NULL-terminated arrays of strings. NULL is an empty one. */
char **luv_strv_free(char **v);
DEFINE_CLEANUP(char **, luv_strv_free);
#define _cleanup_strv_ _cleanup_(luv_strv_freep)
size_t luv_strv_length(char *const *v);
bool luv_strv_contains(char *const *v, const char *s);
/* Adds a copy of S. */
int luv_strv_extend(char ***v, const char *s);
int luv_strv_copy(char *const *v, char ***ret);
/* A new string, NULL if out of memory. */
char *luv_strv_join(char *const *v, const char *separator);

static inline const char *startswith(const char *s, const char *prefix)
{
        size_t n = strlen(prefix);

        return strncmp(s, prefix, n) == 0 ? s + n : NULL;
}

/* Replaces *P by a copy of S (which may be NULL). */
int luv_free_and_strdup(char **p, const char *s);

/* 128 random bits in lower case hex. */
#define LUVFIO_ID_SIZE 33
void luv_random_id(char ret[static LUVFIO_ID_SIZE]);
bool luv_id_valid(const char *s);

/* 1 to 48 of A-Z a-z 0-9 _ . -, first a letter or digit. */
#define LUVFIO_MACHINE_NAME_MAX 48u
bool luv_machine_name_valid(const char *s);
/* 1 to 64 printable ASCII characters. */
#define LUVFIO_FD_NAME_MAX 64u
bool luv_fd_name_valid(const char *s);
/* 0000:00:03.0, lower case; the domain has 4 to 8 digits. */
bool luv_pci_address_valid(const char *s);
/* Strict: no surrogates, no overlong forms, no 0 byte before SIZE. */
bool luv_utf8_valid(const char *s, size_t size);

/* Decimal, nothing else; -EINVAL, -ERANGE. */
int luv_parse_u64(const char *s, uint64_t *ret);
/* A number with s, ms, us, min or no unit (seconds); -EINVAL, -ERANGE. */
int luv_parse_timespan(const char *s, uint64_t *ret_usec);
/* "EBUSY" or "16" -> 16; -EINVAL. */
int luv_parse_errno(const char *s);
