/* SPDX-License-Identifier: LGPL-2.1-or-later */

/*
 * Before the C library of luvfio-qemu (LD_PRELOAD): where the file $DIES is, which names a file descriptor,
 * it is removed, and the process is killed instead of handing that one to the service manager.
 */

#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

typedef int (*Notify)(pid_t pid, int unset_environment, const char *state, const int *fds, unsigned n_fds);

static void die_at(const char *path, const char *state)
{
        char name[64] = "FDNAME=";
        FILE *f = fopen(path, "re");
        size_t n = strlen(name);

        if (!f)
                return;
        if (fgets(name + n, (int) (sizeof(name) - n), f) && strstr(state, name) && unlink(path) == 0)
                (void) raise(SIGKILL);
        (void) fclose(f);
}

int sd_pid_notify_with_fds(pid_t pid, int unset_environment, const char *state, const int *fds,
                           unsigned n_fds)
{
        const char *path = getenv("DIES");

        if (path)
                die_at(path, state);
        return ((Notify) dlsym(RTLD_NEXT, "sd_pid_notify_with_fds"))(pid, unset_environment, state, fds,
                                                                     n_fds);
}
