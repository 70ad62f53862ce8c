/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <sys/vfs.h>

#include "util/cgroup.h"
#include "util/io.h"
#include "util/string-util.h"

/* In the hybrid layout the unified tree is a folder below. */
static const char *cgroup_root(void)
{
        struct statfs fs;

        if (statfs("/sys/fs/cgroup", &fs) >= 0 && (unsigned long) fs.f_type == CGROUP2_SUPER_MAGIC)
                return "/sys/fs/cgroup";
        return "/sys/fs/cgroup/unified";
}

static int find_unified(char *text, char **ret)
{
        char *line, *rest = text;

        while ((line = strsep(&rest, "\n"))) {
                const char *path = startswith(line, "0::");
                char *copy;

                if (!path || path[0] != '/')
                        continue;
                copy = strdup(path);
                if (!copy)
                        return -ENOMEM;
                *ret = copy;
                return 0;
        }
        return -ENODATA;
}

int luv_cgroup_of_pid(pid_t pid, char **ret)
{
        _cleanup_free_ char *path = NULL, *text = NULL;
        int r;

        path = pid == 0 ? strdup("/proc/self/cgroup") : luv_strf("/proc/%i/cgroup", pid);
        if (!path)
                return -ENOMEM;
        r = luv_read_line_file(AT_FDCWD, path, &text);
        if (r == -ENOENT)
                return -ESRCH;
        if (r < 0)
                return r;
        return find_unified(text, ret);
}

static int pid_of_pidfd(int pidfd, pid_t *ret)
{
        _cleanup_free_ char *path = NULL, *text = NULL;
        char *line, *rest;
        int r, pid;

        path = luv_strf("/proc/self/fdinfo/%i", pidfd);
        if (!path)
                return -ENOMEM;
        r = luv_read_line_file(AT_FDCWD, path, &text);
        if (r < 0)
                return r == -ENOENT ? -EBADF : r;
        rest = text;
        while ((line = strsep(&rest, "\n"))) {
                if (sscanf(line, "Pid: %i", &pid) != 1)
                        continue;
                if (pid <= 0)
                        return -ESRCH;
                *ret = pid;
                return 0;
        }
        return -EBADF;
}

int luv_cgroup_of_pidfd(int pidfd, char **ret)
{
        struct pollfd p = { .fd = pidfd, .events = POLLIN };
        _cleanup_free_ char *cgroup = NULL;
        pid_t pid;
        int r;

        r = pid_of_pidfd(pidfd, &pid);
        if (r < 0)
                return r;
        r = luv_cgroup_of_pid(pid, &cgroup);
        if (r < 0)
                return r;
        /* Still alive, so the pid was its own all the while. */
        r = poll(&p, 1, 0);
        if (r < 0)
                return negative_errno();
        if (r > 0)
                return -ESRCH;
        *ret = TAKE_PTR(cgroup);
        return 0;
}

int luv_cgroup_open(const char *cgroup)
{
        _cleanup_free_ char *path = NULL;
        int fd;

        path = luv_strf("%s/%s", cgroup_root(), cgroup);
        if (!path)
                return -ENOMEM;
        fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
        return fd < 0 ? negative_errno() : fd;
}

int luv_cgroup_open_for_process(const char *cgroup, char **ret_cgroup)
{
        _cleanup_free_ char *path = strdup(cgroup);

        if (!path)
                return -ENOMEM;
        for (;;) {
                _cleanup_free_ char *type = NULL;
                _cleanup_close_ int fd = -EBADF;
                char *slash;
                int r;

                fd = luv_cgroup_open(path);
                if (fd < 0)
                        return fd;
                /* The root has no such file and takes processes. */
                r = luv_read_line_file(fd, "cgroup.type", &type);
                if (r < 0 && r != -ENOENT)
                        return r;
                slash = strrchr(path, '/');
                if (r < 0 || !slash || (!streq(type, "threaded") && !streq(type, "domain invalid"))) {
                        if (ret_cgroup)
                                *ret_cgroup = TAKE_PTR(path);
                        return TAKE_FD(fd);
                }
                *slash = 0;
        }
}

int luv_cgroup_is_frozen(const char *cgroup)
{
        _cleanup_free_ char *events = NULL, *freeze = NULL;
        _cleanup_close_ int fd = -EBADF;
        int r;

        fd = luv_cgroup_open(cgroup);
        if (fd < 0)
                return fd;
        r = luv_read_line_file(fd, "cgroup.events", &events);
        /* The root has none of these and is never frozen. */
        if (r == -ENOENT)
                return 0;
        if (r < 0)
                return r;
        r = luv_read_line_file(fd, "cgroup.freeze", &freeze);
        if (r < 0)
                return r;
        return strstr(events, "frozen 1") || streq(freeze, "1");
}
