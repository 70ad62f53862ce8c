/* SPDX-License-Identifier: LGPL-2.1-or-later */

/*
 * Before the C library of luvfiod (LD_PRELOAD): /dev/liveupdate answers EIO when it is opened, as the kernel
 * does for the rest of a boot in which it could not read what the last one preserved.
 */

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>
#include <sys/types.h>

typedef int (*Open)(const char *path, int flags, ...);

static int open_as(const char *symbol, const char *path, int flags, mode_t mode)
{
        if (strcmp(path, "/dev/liveupdate") == 0) {
                errno = EIO;
                return -1;
        }
        return ((Open) dlsym(RTLD_NEXT, symbol))(path, flags, mode);
}

#define DEFINE_OPEN(name)                                                                                   \
        int name(const char *path, int flags, ...)                                                          \
        {                                                                                                   \
                bool creates = (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE;                       \
                mode_t mode;                                                                                \
                va_list ap;                                                                                 \
                                                                                                            \
                va_start(ap, flags);                                                                        \
                mode = creates ? va_arg(ap, mode_t) : 0;                                                    \
                va_end(ap);                                                                                 \
                return open_as(#name, path, flags, mode);                                                   \
        }

DEFINE_OPEN(open)
DEFINE_OPEN(open64)
