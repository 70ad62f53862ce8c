/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* $LISTEN_FDS and $LISTEN_FDNAMES as anybody may set them: the input is both, a newline between. */

#include <fcntl.h>

#include "fuzz.h"
#include "luo/fd-store.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        _cleanup_(luv_fd_store_freep) FdStore *s = NULL;
        _cleanup_free_ char *text = NULL;
        char pid[16], *names, **left = NULL;
        int fds[4];

        fuzz_quiet();
        text = fuzz_string(data, size);
        names = strchr(text, '\n');
        if (names)
                *names++ = 0;

        /* From 3 on, as a service manager passes them. */
        for (size_t i = 0; i < ELEMENTSOF(fds); i++) {
                _cleanup_close_ int fd = fuzz_memfd("x", 1);

                fds[i] = 3 + (int) i;
                if (fd != fds[i])
                        FUZZ_REQUIRE(dup3(fd, fds[i], O_CLOEXEC) >= 0);
                else
                        fd = -EBADF;
        }
        (void) snprintf(pid, sizeof(pid), "%i", getpid());
        FUZZ_REQUIRE(setenv("LISTEN_PID", pid, true) >= 0);
        FUZZ_REQUIRE(setenv("LISTEN_FDS", text, true) >= 0);
        if (names)
                FUZZ_REQUIRE(setenv("LISTEN_FDNAMES", names, true) >= 0);
        else
                (void) unsetenv("LISTEN_FDNAMES");
        (void) unsetenv("NOTIFY_SOCKET");

        if (luv_fd_store_new(&s) >= 0) {
                FUZZ_REQUIRE(!luv_fd_store_available(s));
                if (luv_fd_store_names(s, "", &left) >= 0) {
                        for (size_t i = 0; left[i]; i++) {
                                _cleanup_close_ int fd = luv_fd_store_take(s, left[i]);

                                FUZZ_REQUIRE(fd >= 0);
                                free(left[i]);
                        }
                        free(left);
                }
        }
        for (size_t i = 0; i < ELEMENTSOF(fds); i++)
                (void) close(fds[i]);
        return 0;
}
