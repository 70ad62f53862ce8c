/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <sys/socket.h>
#include <systemd/sd-daemon.h>

#include "luo/fd-store.h"
#include "util/string-util.h"
#include "util/time-util.h"

/* The manager is one process for the whole host and may be busy with others. */
#define BARRIER_USEC (10 * USEC_PER_SEC)

typedef struct StoreEntry {
        char *name;
        int fd;      /* what was passed at start and not taken yet, or negative */
        bool stored; /* is in the manager's store, as opposed to a socket */
} StoreEntry;

struct FdStore {
        bool available;
        uint64_t max;
        StoreEntry *entries; /* newest first, as the manager passes them */
        size_t n_entries;
};

static void entry_done(StoreEntry *e)
{
        (void) safe_close(e->fd);
        free(e->name);
}

static int entry_prepend(FdStore *s, const char *name, int fd, bool stored)
{
        StoreEntry *grown;
        char *copy;

        copy = strdup(name);
        if (!copy)
                return -ENOMEM;
        grown = reallocarray(s->entries, s->n_entries + 1, sizeof(StoreEntry));
        if (!grown) {
                free(copy);
                return -ENOMEM;
        }
        s->entries = grown;
        memmove(grown + 1, grown, s->n_entries * sizeof(StoreEntry));
        grown[0] = (StoreEntry) { .name = copy, .fd = fd, .stored = stored };
        s->n_entries++;
        return 0;
}

int luv_fd_store_new(FdStore **ret)
{
        _cleanup_(luv_fd_store_freep) FdStore *s = NULL;
        _cleanup_strv_ char **names = NULL;
        uint64_t max;
        int n, r;

        s = calloc(1, sizeof(*s));
        if (!s)
                return -ENOMEM;
        s->max = UINT64_MAX;
        if (luv_parse_u64(getenv("FDSTORE"), &max) >= 0)
                s->max = max;
        s->available = getenv("NOTIFY_SOCKET") && s->max > 0;

        n = sd_listen_fds_with_names(/* unset_environment= */ true, &names);
        if (n < 0)
                return n;
        for (int i = n - 1; i >= 0; i--) {
                int fd = SD_LISTEN_FDS_START + i;

                r = entry_prepend(s, names && names[i] ? names[i] : "unknown", fd,
                                  sd_is_socket(fd, AF_UNSPEC, 0, /* listening= */ 1) <= 0);
                if (r < 0)
                        return r;
        }
        *ret = TAKE_PTR(s);
        return 0;
}

FdStore *luv_fd_store_free(FdStore *s)
{
        if (!s)
                return NULL;
        for (size_t i = 0; i < s->n_entries; i++)
                entry_done(&s->entries[i]);
        free(s->entries);
        free(s);
        return NULL;
}

bool luv_fd_store_available(FdStore *s)
{
        return s->available;
}

int luv_fd_store_take(FdStore *s, const char *name)
{
        for (size_t i = 0; i < s->n_entries; i++)
                if (s->entries[i].fd >= 0 && streq(s->entries[i].name, name))
                        return TAKE_FD(s->entries[i].fd);
        return -ENOENT;
}

int luv_fd_store_names(FdStore *s, const char *prefix, char ***ret)
{
        _cleanup_strv_ char **names = NULL;
        int r;

        names = calloc(1, sizeof(char *));
        if (!names)
                return -ENOMEM;
        for (size_t i = 0; i < s->n_entries; i++) {
                const StoreEntry *e = &s->entries[i];

                if (e->fd < 0 || !startswith(e->name, prefix) || luv_strv_contains(names, e->name))
                        continue;
                r = luv_strv_extend(&names, e->name);
                if (r < 0)
                        return r;
        }
        *ret = TAKE_PTR(names);
        return 0;
}

/* What the manager takes as FDNAME=. */
static bool name_valid(const char *name)
{
        size_t n = strlen(name);

        for (size_t i = 0; i < n; i++)
                if (name[i] <= 0x20 || name[i] > 0x7e || name[i] == ':')
                        return false;
        return n > 0 && n <= 255;
}

static bool is_stored(FdStore *s, const char *name)
{
        for (size_t i = 0; i < s->n_entries; i++)
                if (s->entries[i].stored && streq(s->entries[i].name, name))
                        return true;
        return false;
}

static int push(FdStore *s, const char *name, int fd, bool wait)
{
        _cleanup_free_ char *message = NULL;
        uint64_t stored = 0;
        int r;

        if (!name_valid(name))
                return -EINVAL;
        if (!s->available)
                return 0;
        for (size_t i = 0; i < s->n_entries; i++)
                stored += s->entries[i].stored;
        /* Under a name that is there already it may be the same file, which the manager does not count
         * twice. */
        if (stored >= s->max && !is_stored(s, name))
                return -ENOSPC;

        /* Without FDPOLL=0 the manager would watch the fd and drop it on a hangup. */
        message = luv_strf("FDSTORE=1\nFDPOLL=0\nFDNAME=%s", name);
        if (!message)
                return -ENOMEM;
        r = sd_pid_notify_with_fds(0, false, message, &fd, 1);
        if (r < 0)
                return r;
        if (wait) {
                r = sd_notify_barrier(false, BARRIER_USEC);
                if (r < 0)
                        return r == -ETIMEDOUT ? -ETIME : r;
        }
        return is_stored(s, name) ? 0 : entry_prepend(s, name, -EBADF, true);
}

int luv_fd_store_push(FdStore *s, const char *name, int fd)
{
        return push(s, name, fd, /* wait= */ true);
}

int luv_fd_store_send(FdStore *s, const char *name, int fd)
{
        return push(s, name, fd, /* wait= */ false);
}

int luv_fd_store_remove(FdStore *s, const char *name)
{
        _cleanup_free_ char *message = NULL;
        size_t kept = 0;
        int r = 0;

        if (!name_valid(name))
                return -EINVAL;
        if (s->available) {
                message = luv_strf("FDSTOREREMOVE=1\nFDNAME=%s", name);
                if (!message)
                        return -ENOMEM;
                r = sd_notify(false, message);
                if (r < 0)
                        return r;
        }
        for (size_t i = 0; i < s->n_entries; i++)
                if (s->entries[i].stored && streq(s->entries[i].name, name))
                        entry_done(&s->entries[i]);
                else
                        s->entries[kept++] = s->entries[i];
        s->n_entries = kept;
        return 0;
}
