/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <stdarg.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <systemd/sd-journal.h>

#include "util/log.h"
#include "util/string-util.h"

static int max_level = -1;

/* Whether stderr is the stream to the journal that the service manager set up: then fields get there too. */
static bool stderr_is_journal(void)
{
        unsigned long long dev, ino;
        struct stat st;
        const char *e;
        char end;

        e = getenv("JOURNAL_STREAM");
        if (!e || sscanf(e, "%llu:%llu%c", &dev, &ino, &end) != 2)
                return false;
        if (fstat(STDERR_FILENO, &st) < 0)
                return false;
        return st.st_dev == dev && st.st_ino == ino;
}

void luv_log_set_max_level(int level)
{
        max_level = MAX(LOG_EMERG, MIN(level, LOG_DEBUG));
}

int luv_log_get_max_level(void)
{
        uint64_t level;

        if (max_level < 0) {
                if (luv_parse_u64(getenv("LUVFIO_LOG_LEVEL"), &level) < 0 || level > LOG_DEBUG)
                        level = LOG_INFO;
                max_level = (int) level;
        }
        return max_level;
}

typedef struct JournalEntry {
        struct iovec iov[16];
        int n;
} JournalEntry;

_printf_(3, 4) static void journal_add(JournalEntry *e, bool wanted, const char *format, ...)
{
        va_list ap;
        char *s;
        int n;

        if (!wanted || (size_t) e->n >= ELEMENTSOF(e->iov))
                return;
        va_start(ap, format);
        n = vasprintf(&s, format, ap);
        va_end(ap);
        if (n < 0)
                return;
        e->iov[e->n++] = (struct iovec) { .iov_base = s, .iov_len = (size_t) n };
}

static int log_to_journal(int priority, const LogFields *f, const char *message)
{
        JournalEntry e = {};
        int r;

        journal_add(&e, true, "MESSAGE=%s", message);
        journal_add(&e, true, "PRIORITY=%i", priority);
        if (f) {
                journal_add(&e, f->message_id, "MESSAGE_ID=%s", f->message_id);
                journal_add(&e, f->update_id, "LUVFIO_UPDATE_ID=%s", f->update_id);
                journal_add(&e, f->session, "LUVFIO_SESSION=%s", f->session);
                journal_add(&e, f->machine, "LUVFIO_VM=%s", f->machine);
                journal_add(&e, f->device, "LUVFIO_DEVICE=%s", f->device);
                journal_add(&e, f->state, "LUVFIO_STATE=%s", f->state);
                journal_add(&e, f->plugin, "LUVFIO_PLUGIN=%s", f->plugin);
                journal_add(&e, f->duration_usec, "LUVFIO_DURATION_US=%llu",
                            (unsigned long long) f->duration_usec);
                journal_add(&e, f->error, "ERRNO=%i", f->error < 0 ? -f->error : f->error);
        }

        r = sd_journal_sendv(e.iov, e.n);
        for (int i = 0; i < e.n; i++)
                free(e.iov[i].iov_base);
        return r;
}

static void log_line(int priority, const LogFields *fields, const char *message)
{
        char prefix[8] = "";

        if (stderr_is_journal() && log_to_journal(priority, fields, message) >= 0)
                return;
        if (!isatty(STDERR_FILENO))
                (void) snprintf(prefix, sizeof(prefix), "<%i>", priority);
        (void) fprintf(stderr, "%s%s\n", prefix, message);
}

void luv_log_struct(int priority, const LogFields *fields, const char *format, ...)
{
        _cleanup_free_ char *message = NULL;
        int saved = errno;
        va_list ap;

        if (priority > luv_log_get_max_level())
                return;
        va_start(ap, format);
        message = luv_strfv(format, ap);
        va_end(ap);
        log_line(priority, fields, message ? message : format);
        errno = saved;
}

int luv_log_errno(int priority, int error, const char *format, ...)
{
        _cleanup_free_ char *message = NULL;
        LogFields fields = { .error = error };
        va_list ap;

        if (error > 0)
                error = -error;
        va_start(ap, format);
        message = luv_strfv(format, ap);
        va_end(ap);
        luv_log_struct(priority, &fields, "%s: %s", message ? message : format, strerror(-error));
        return error;
}
