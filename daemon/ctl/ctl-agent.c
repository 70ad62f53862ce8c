/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include "ctl/ctl-agent.h"
#include "util/string-util.h"

#define START_MSEC 5000

extern char **environ;

void ctl_agent_start(Agent *a)
{
        _cleanup_close_ int ready = -EBADF, notify = -EBADF;
        _cleanup_free_ char *fd = NULL;
        posix_spawn_file_actions_t actions;
        posix_spawnattr_t attributes;
        sigset_t none;
        struct pollfd p;
        int pipes[2];

        if (*a > 0 || geteuid() == 0 || !isatty(STDIN_FILENO) || !isatty(STDERR_FILENO))
                return;
        if (pipe2(pipes, O_CLOEXEC) < 0)
                return;
        ready = pipes[0];
        notify = pipes[1];
        fd = luv_strf("%d", notify);
        if (!fd || posix_spawn_file_actions_init(&actions) != 0)
                return;
        if (posix_spawnattr_init(&attributes) != 0) {
                (void) posix_spawn_file_actions_destroy(&actions);
                return;
        }
        /* Signals that our event loop takes must reach the agent. dup2 to itself clears close-on-exec there.
         */
        (void) sigemptyset(&none);
        if (posix_spawnattr_setsigmask(&attributes, &none) == 0 &&
            posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK) == 0 &&
            posix_spawn_file_actions_adddup2(&actions, notify, notify) == 0) {
                char *argv[] = { (char *) "pkttyagent", (char *) "--notify-fd", fd, (char *) "--fallback",
                                 NULL };

                if (posix_spawnp(a, argv[0], &actions, &attributes, argv, environ) != 0)
                        *a = 0;
        }
        (void) posix_spawnattr_destroy(&attributes);
        (void) posix_spawn_file_actions_destroy(&actions);
        if (*a <= 0)
                return;

        /* It closes its end when it is registered, and when it cannot be. */
        notify = safe_close(notify);
        p = (struct pollfd) { .fd = ready };
        (void) poll(&p, 1, START_MSEC);
}

void ctl_agent_stop(Agent *a)
{
        if (*a <= 0)
                return;
        (void) kill(*a, SIGTERM);
        (void) kill(*a, SIGCONT);
        while (waitpid(*a, NULL, 0) < 0 && errno == EINTR)
                ;
        *a = 0;
}
