/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* What every file uses: scope-bound cleanup, ownership transfer, small arithmetic. */

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define _cleanup_(f) __attribute__((cleanup(f)))
#define _printf_(a, b) __attribute__((format(printf, a, b)))
#define _public_ __attribute__((visibility("default")))

#define ELEMENTSOF(x) (sizeof(x) / sizeof((x)[0]))
#define STRLEN(s) (sizeof(s) - 1)
/* GLib has some, too. */
#undef MIN
#undef MAX
#define MIN(a, b)                                                                                           \
        ({                                                                                                  \
                __typeof__(a) _min_a = (a);                                                                 \
                __typeof__(b) _min_b = (b);                                                                 \
                _min_a < _min_b ? _min_a : _min_b;                                                          \
        })
#define MAX(a, b)                                                                                           \
        ({                                                                                                  \
                __typeof__(a) _max_a = (a);                                                                 \
                __typeof__(b) _max_b = (b);                                                                 \
                _max_a > _max_b ? _max_a : _max_b;                                                          \
        })

#define USEC_PER_SEC ((uint64_t) 1000000)
#define USEC_PER_MSEC ((uint64_t) 1000)
#define NSEC_PER_USEC ((uint64_t) 1000)

/* Hand a resource over: the variable gives it up. */
#define TAKE_PTR(p)                                                                                         \
        ({                                                                                                  \
                __typeof__(p) *_take_p = &(p);                                                              \
                __typeof__(p) _take_v = *_take_p;                                                           \
                *_take_p = NULL;                                                                            \
                _take_v;                                                                                    \
        })
#define TAKE_FD(fd)                                                                                         \
        ({                                                                                                  \
                int *_take_fd_p = &(fd);                                                                    \
                int _take_fd_v = *_take_fd_p;                                                               \
                *_take_fd_p = -EBADF;                                                                       \
                _take_fd_v;                                                                                 \
        })

static inline void freep(void *p)
{
        free(*(void **) p);
}

static inline int safe_close(int fd)
{
        if (fd >= 0) {
                int saved = errno;

                (void) close(fd);
                errno = saved;
        }
        return -EBADF;
}

static inline void closep(int *fd)
{
        *fd = safe_close(*fd);
}

static inline void fclosep(FILE **f)
{
        if (*f)
                (void) fclose(*f);
}

#define _cleanup_free_ _cleanup_(freep)
#define _cleanup_close_ _cleanup_(closep)
#define _cleanup_fclose_ _cleanup_(fclosep)

/* For a pointer type with a NULL-safe destructor that returns NULL: DEFINE_CLEANUP(Luo *, luv_luo_unref). */
#define DEFINE_CLEANUP(type, func)                                                                          \
        static inline void func##p(type *p)                                                                 \
        {                                                                                                   \
                if (*p)                                                                                     \
                        *p = func(*p);                                                                      \
        }                                                                                                   \
        struct swallow_semicolon

static inline bool streq(const char *a, const char *b)
{
        return strcmp(a, b) == 0;
}

/* NULL equals NULL and nothing else. */
static inline bool streq_ptr(const char *a, const char *b)
{
        return a && b ? streq(a, b) : a == b;
}

static inline const char *strempty(const char *s)
{
        return s ? s : "";
}

/* errno as a negative number, never 0, even if a library forgot to set it. */
static inline int negative_errno(void)
{
        return errno > 0 ? -errno : -EIO;
}

/*
 * An enum's names: DEFINE_STRING_TABLE(update_state, UpdateState) over a table `update_state_table`
 * gives update_state_to_string() (NULL if out of range) and update_state_from_string() (-EINVAL).
 */
#define DEFINE_STRING_TABLE(name, type)                                                                     \
        const char *name##_to_string(type i)                                                                \
        {                                                                                                   \
                if ((int) i < 0 || (size_t) i >= ELEMENTSOF(name##_table))                                  \
                        return NULL;                                                                        \
                return name##_table[i];                                                                     \
        }                                                                                                   \
        type name##_from_string(const char *s)                                                              \
        {                                                                                                   \
                for (size_t i = 0; s && i < ELEMENTSOF(name##_table); i++)                                  \
                        if (name##_table[i] && streq(name##_table[i], s))                                   \
                                return (type) i;                                                            \
                return (type) - EINVAL;                                                                     \
        }                                                                                                   \
        struct swallow_semicolon
