/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>

#include "luo/luo-worker.h"

static int do_ioctl(int fd, unsigned long request, void *argument)
{
        return ioctl(fd, request, argument);
}

int main(int argc, char *argv[])
{
        int r;

        if (argc != 1) {
                (void) fprintf(stderr, "%s is luvfiod's own helper and takes no arguments.\n", argv[0]);
                return EXIT_FAILURE;
        }
        (void) prctl(PR_SET_NAME, "luo-worker");
        r = luv_luo_worker_run(LUO_WORKER_SOCKET_FD, LUO_WORKER_SESSION_FD, do_ioctl);
        if (r < 0) {
                (void) fprintf(stderr, "<3>%s: %s\n", LUO_WORKER_NAME, strerror(-r));
                return EXIT_FAILURE;
        }
        return EXIT_SUCCESS;
}
