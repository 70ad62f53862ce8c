/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <systemd/sd-login.h>

#include "preflight/preflight-processes.h"
#include "util/cgroup.h"
#include "util/io.h"
#include "util/string-util.h"

static bool ends_with(const char *s, size_t n, const char *suffix)
{
        size_t k = strlen(suffix);

        return n > k && strncmp(s + n - k, suffix, k) == 0;
}

char *luv_cgroup_of_unit(const char *cgroup)
{
        size_t end = 0;

        for (const char *p = cgroup; *p;) {
                const char *component = p + strspn(p, "/");
                size_t n = strcspn(component, "/");

                p = component + n;
                if (ends_with(component, n, ".service") || ends_with(component, n, ".scope"))
                        end = (size_t) (p - cgroup);
        }
        return end > 0 ? strndup(cgroup, end) : strdup(cgroup);
}

static const char *what_it_holds(const char *link)
{
        if (startswith(link, "anon_inode:kvm-vm"))
                return "KVM";
        if (startswith(link, "anon_inode:[vfio") || startswith(link, "/dev/vfio/devices/") ||
            (startswith(link, "/dev/vfio/") && !streq(link, "/dev/vfio/vfio")))
                return "VFIO";
        return NULL;
}

static const char *find_held(int proc_fd, const char *pid)
{
        _cleanup_free_ char *path = luv_strf("%s/fd", pid);
        const char *held = NULL;
        struct dirent *e;
        DIR *dir;
        int fd;

        if (!path)
                return NULL;
        fd = openat(proc_fd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0)
                return NULL;
        dir = fdopendir(fd);
        if (!dir) {
                safe_close(fd);
                return NULL;
        }
        while (!held && (e = readdir(dir))) {
                char link[PATH_MAX];
                ssize_t n;

                n = readlinkat(dirfd(dir), e->d_name, link, sizeof(link) - 1);
                if (n < 0)
                        continue;
                link[n] = 0;
                held = what_it_holds(link);
        }
        closedir(dir);
        return held;
}

static pid_t parent_of(pid_t pid)
{
        _cleanup_free_ char *path = luv_strf("/proc/%i/stat", pid), *line = NULL;
        char *rest, state;
        int parent;

        if (!path || luv_read_line_file(AT_FDCWD, path, &line) < 0)
                return 0;
        rest = strrchr(line, ')');
        return rest && sscanf(rest, ") %c %i", &state, &parent) == 2 ? parent : 0;
}

static bool is_machines_memory(MachineRegistry *machines, const struct stat *st)
{
        for (size_t i = 0; i < luv_machine_registry_size(machines); i++) {
                const Machine *m = luv_machine_registry_at(machines, i);

                for (size_t k = 0; k < m->n_fds; k++)
                        if (m->fds[k]->kind == FD_KIND_MEMFD && m->fds[k]->identity.dev == st->st_dev &&
                            m->fds[k]->identity.ino == st->st_ino)
                                return true;
        }
        return false;
}

/* Whether it has memory open that a machine has handed over: then somebody else speaks for it. */
static bool holds_memory(MachineRegistry *machines, int proc_fd, pid_t pid)
{
        _cleanup_free_ char *path = luv_strf("%i/fd", (int) pid);
        bool found = false;
        struct dirent *e;
        DIR *dir;
        int fd;

        fd = path ? openat(proc_fd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -EBADF;
        if (fd < 0)
                return false;
        dir = fdopendir(fd);
        if (!dir) {
                safe_close(fd);
                return false;
        }
        while (!found && (e = readdir(dir))) {
                struct stat st;

                found = fstatat(dirfd(dir), e->d_name, &st, 0) >= 0 && S_ISREG(st.st_mode) &&
                        is_machines_memory(machines, &st);
        }
        closedir(dir);
        return found;
}

/* The VMM itself, a child of it, or what runs beside it in its own unit. */
static bool is_known(MachineRegistry *machines, pid_t pid)
{
        _cleanup_free_ char *cgroup = NULL, *unit = NULL;

        if (luv_cgroup_of_pid(pid, &cgroup) >= 0)
                unit = luv_cgroup_of_unit(cgroup);
        for (pid_t p = pid; p > 1; p = parent_of(p)) {
                if (p == getpid())
                        return true;
                for (size_t i = 0; i < luv_machine_registry_size(machines); i++)
                        if (luv_machine_registry_at(machines, i)->owner.pid == p)
                                return true;
        }
        for (size_t i = 0; unit && i < luv_machine_registry_size(machines); i++) {
                Machine *m = luv_machine_registry_at(machines, i);
                _cleanup_free_ char *its = NULL;

                /* Somebody's login session is no machine's unit. */
                if (!m->owner.unit || !m->owner.cgroup || startswith(m->owner.unit, "session-"))
                        continue;
                its = luv_cgroup_of_unit(m->owner.cgroup);
                if (its && streq(its, unit))
                        return true;
        }
        return false;
}

static int add_process(PreflightFacts *f, pid_t pid, const char *holds)
{
        _cleanup_free_ char *path = NULL, *name = NULL, *unit = NULL, *held = NULL;
        PreflightProcess *p;

        path = luv_strf("/proc/%i/comm", pid);
        if (!path)
                return -ENOMEM;
        /* Gone meanwhile. */
        if (luv_read_line_file(AT_FDCWD, path, &name) < 0)
                return 0;
        (void) sd_pid_get_unit(pid, &unit);
        held = strdup(holds);
        p = reallocarray(f->processes, f->n_processes + 1, sizeof(PreflightProcess));
        if (p)
                f->processes = p;
        if (!p || !held)
                return -ENOMEM;
        p[f->n_processes++] = (PreflightProcess) {
                .pid = pid,
                .name = TAKE_PTR(name),
                .unit = TAKE_PTR(unit),
                .holds = TAKE_PTR(held),
        };
        return 0;
}

int luv_preflight_find_processes(MachineRegistry *machines, PreflightFacts *f)
{
        struct dirent *e;
        DIR *dir;
        int r = 0;

        dir = opendir("/proc");
        if (!dir)
                return negative_errno();
        while (r >= 0 && (e = readdir(dir))) {
                const char *held;
                uint64_t pid;

                if (luv_parse_u64(e->d_name, &pid) < 0)
                        continue;
                held = find_held(dirfd(dir), e->d_name);
                if (held && !is_known(machines, (pid_t) pid) &&
                    !holds_memory(machines, dirfd(dir), (pid_t) pid))
                        r = add_process(f, (pid_t) pid, held);
        }
        closedir(dir);
        return r;
}
