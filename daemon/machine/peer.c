/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <systemd/sd-login.h>

#include "machine/peer.h"
#include "util/cgroup.h"
#include "util/io.h"
#include "util/string-util.h"

bool luv_pidfd_is_alive(int pidfd)
{
        struct pollfd p = { .fd = pidfd, .events = POLLIN };

        return pidfd >= 0 && poll(&p, 1, 0) == 0;
}

/* A unit of a user's manager is named with the user's own unit: user@1000.service alone is all of them. */
static int unit_of(int pidfd, char **ret)
{
        _cleanup_free_ char *system = NULL, *user = NULL;
        int r;

        r = sd_pidfd_get_unit(pidfd, &system);
        if (r < 0)
                return r;
        r = sd_pidfd_get_user_unit(pidfd, &user);
        if (r >= 0) {
                char *both = luv_strf("%s/%s", system, user);

                if (!both)
                        return -ENOMEM;
                *ret = both;
                return 0;
        }
        *ret = TAKE_PTR(system);
        return 0;
}

int luv_peer_open(int socket_fd, pid_t pid)
{
        socklen_t size = sizeof(int);
        int fd;

        if (getsockopt(socket_fd, SOL_SOCKET, SO_PEERPIDFD, &fd, &size) >= 0)
                return fd;
        if (errno == ENOPROTOOPT) {
                fd = pidfd_open(pid, 0);
                if (fd >= 0)
                        return fd;
        }
        return negative_errno();
}

int luv_peer_identify(uid_t uid, pid_t pid, int pidfd, MachineOwner *ret)
{
        _cleanup_(luv_machine_owner_done) MachineOwner o = { .uid = uid, .pid = pid, .pidfd = -EBADF };
        int r;

        o.pidfd = pidfd >= 0 ? fcntl(pidfd, F_DUPFD_CLOEXEC, 3) : pidfd_open(pid, 0);
        if (o.pidfd < 0) {
                /* It may have sent its message and gone. */
                if (errno != ESRCH)
                        return negative_errno();
        } else {
                r = unit_of(o.pidfd, &o.unit);
                if (r == -ENOMEM)
                        return r;
                r = luv_cgroup_of_pidfd(o.pidfd, &o.cgroup);
                if (r == -ENOMEM)
                        return r;
        }
        *ret = o;
        o = (MachineOwner) { .pidfd = -EBADF };
        return 0;
}

int luv_process_start_time(pid_t pid, uint64_t *ret)
{
        _cleanup_free_ char *path = NULL, *line = NULL;
        char *rest, *field;
        int r;

        path = luv_strf("/proc/%i/stat", pid);
        if (!path)
                return -ENOMEM;
        r = luv_read_line_file(AT_FDCWD, path, &line);
        if (r < 0)
                return r == -ENOENT ? -ESRCH : r;
        /* The name, in parentheses, may hold anything; field 3 follows it. The start time is field 22. */
        rest = strrchr(line, ')');
        if (!rest)
                return -EBADMSG;
        rest += STRLEN(") ");
        for (int i = 3; (field = strsep(&rest, " ")); i++)
                if (i == 22)
                        return luv_parse_u64(field, ret);
        return -EBADMSG;
}

int luv_process_open(pid_t pid, uint64_t start_time)
{
        _cleanup_close_ int fd = -EBADF;
        uint64_t t;
        int r;

        if (pid <= 1)
                return -ESRCH;
        fd = pidfd_open(pid, 0);
        if (fd < 0)
                return negative_errno();
        r = luv_process_start_time(pid, &t);
        if (r < 0)
                return r;
        if (t != start_time || !luv_pidfd_is_alive(fd))
                return -ESRCH;
        return TAKE_FD(fd);
}
