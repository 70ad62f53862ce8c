/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <sys/mman.h>

#include "fuzz.h"
#include "util/log.h"
#include "util/macro.h"

_Noreturn void fuzz_failed(const char *what, const char *file, int line)
{
        fprintf(stderr, "%s:%i: this must hold: %s\n", file, line, what);
        abort();
}

int fuzz_memfd(const void *data, size_t size)
{
        int fd;

        fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        FUZZ_REQUIRE(fd >= 0);
        FUZZ_REQUIRE(size == 0 || pwrite(fd, data, size, 0) == (ssize_t) size);
        return fd;
}

char *fuzz_string(const uint8_t *data, size_t size)
{
        char *s;

        s = malloc(size + 1);
        FUZZ_REQUIRE(s);
        if (size > 0)
                memcpy(s, data, size);
        s[size] = 0;
        return s;
}

void fuzz_quiet(void)
{
        luv_log_set_max_level(getenv("FUZZ_LOG") ? LOG_DEBUG : LOG_EMERG);
}
