/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <inttypes.h>

#include "preflight/preflight.h"
#include "util/cgroup.h"
#include "util/io.h"
#include "util/string-util.h"

#define MIB(x) ((x) >> 20)

/* Preserving fills the holes of a sparse memfd, in the kernel, where running out of memory is no error but
 * the end. */
void luv_check_memory(const PreflightFacts *f, Findings *r)
{
        uint64_t usable = f->memory_available - MIN(f->memory_available, f->memory_reserve), holes = 0;
        const PreflightMachine *most = NULL;

        for (size_t i = 0; i < f->n_machines; i++) {
                const PreflightMachine *m = f->machines + i;

                holes += m->holes;
                if (!most || m->holes > most->holes)
                        most = m;
                if (m->holes > m->headroom)
                        luv_blocker(r, "memory-limit",
                                    &(FindingSubject) {
                                                    .machine = m->name,
                                                    .remedy = "Raise MemoryMax= of the machine's unit.",
                                    },
                                    "The memory of machine %s has %" PRIu64
                                    " MiB of holes that preserving fills, and "
                                    "its control group may take %" PRIu64 " MiB more",
                                    m->name, MIB(m->holes), MIB(m->headroom));
        }
        if (holes <= usable)
                return;
        luv_blocker(r, "memory-short",
                    &(FindingSubject) { .remedy = "Free memory on the host, or let guests give memory back "
                                                  "less." },
                    "Preserving fills %" PRIu64 " MiB of holes in guests' memory, most of them (%" PRIu64
                    " MiB) machine %s's, and %" PRIu64 " MiB can be had (%" PRIu64
                    " MiB available less a reserve of %" PRIu64 " MiB)",
                    MIB(holes), MIB(most->holes), most->name, MIB(usable), MIB(f->memory_available),
                    MIB(f->memory_reserve));
}

static uint64_t meminfo(const char *text, const char *key)
{
        const char *at = strstr(text, key);
        uint64_t kib;

        return at && sscanf(at + strlen(key), " %" SCNu64 " kB", &kib) == 1 ? kib * 1024 : 0;
}

int luv_memory_available(uint64_t *ret, uint64_t *ret_reserve)
{
        _cleanup_free_ char *text = NULL;
        uint64_t total;
        int r;

        r = luv_read_line_file(AT_FDCWD, "/proc/meminfo", &text);
        if (r < 0)
                return r;
        total = meminfo(text, "MemTotal:");
        *ret = meminfo(text, "MemAvailable:");
        /* The host goes on with its work meanwhile. */
        *ret_reserve = MIN(total / 20, UINT64_C(1) << 30);
        return 0;
}

/* "max" or a number; what is not there limits nothing. */
static uint64_t read_limit(int dir_fd, const char *name)
{
        _cleanup_free_ char *text = NULL;
        uint64_t v;

        if (luv_read_line_file(dir_fd, name, &text) < 0 || luv_parse_u64(text, &v) < 0)
                return UINT64_MAX;
        return v;
}

int luv_memory_headroom(const char *cgroup, uint64_t *ret)
{
        _cleanup_free_ char *path = NULL;
        uint64_t least = UINT64_MAX;
        char *slash;

        path = strdup(cgroup);
        if (!path)
                return -ENOMEM;
        do {
                _cleanup_close_ int dir_fd = luv_cgroup_open(path);

                if (dir_fd >= 0) {
                        uint64_t max = read_limit(dir_fd, "memory.max");

                        if (max != UINT64_MAX) {
                                uint64_t current = read_limit(dir_fd, "memory.current"), left;

                                left = max - MIN(max, current);
                                least = MIN(least, left);
                        }
                }
                slash = strrchr(path, '/');
                if (slash)
                        *slash = 0;
        } while (slash && path[0]);
        *ret = least;
        return 0;
}
