/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <inttypes.h>
#include <langinfo.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <time.h>

#include "ctl/ctl-format.h"
#include "util/string-util.h"

#define COLUMNS_DEFAULT 80u
#define COLUMNS_MAX 400u

void ctl_terminal_init(Terminal *ret, FILE *f)
{
        const char *no_colour = getenv("NO_COLOR"), *term = getenv("TERM");
        struct winsize size = {};
        bool tty = isatty(fileno(f));

        *ret = (Terminal) {
                .f = f,
                .live = tty && term && !streq(term, "dumb"),
                .unicode = streq(nl_langinfo(CODESET), "UTF-8"),
                .columns = COLUMNS_DEFAULT,
        };
        ret->colour = ret->live && (!no_colour || *no_colour == '\0');
        if (tty && ioctl(fileno(f), TIOCGWINSZ, &size) >= 0 && size.ws_col > 20)
                ret->columns = MIN((unsigned) size.ws_col, COLUMNS_MAX);
}

const char *ctl_style(const Terminal *t, Style s)
{
        static const char *const codes[_STYLE_MAX] = {
                [STYLE_NONE] = "",         [STYLE_BOLD] = "\033[1m",  [STYLE_DIM] = "\033[2m",
                [STYLE_GOOD] = "\033[32m", [STYLE_WARN] = "\033[33m", [STYLE_BAD] = "\033[1;31m",
        };

        return t->colour ? codes[s] : "";
}

const char *ctl_style_off(const Terminal *t, Style s)
{
        return t->colour && s != STYLE_NONE ? "\033[0m" : "";
}

/* The character that begins at S and its length; 0 for a byte that is no UTF-8. */
static uint32_t decode(const char *s, size_t *ret_length)
{
        size_t n = (unsigned char) *s < 0x80    ? 1
                   : (unsigned char) *s >= 0xf0 ? 4
                   : (unsigned char) *s >= 0xe0 ? 3
                                                : 2;
        uint32_t c;

        *ret_length = 1;
        if (n == 1)
                return (unsigned char) *s;
        if (strnlen(s, n) < n || !luv_utf8_valid(s, n))
                return 0;

        *ret_length = n;
        c = (unsigned char) *s & (0xffu >> (n + 1));
        for (size_t i = 1; i < n; i++)
                c = c << 6 | ((unsigned char) s[i] & 0x3f);
        return c;
}

/* Control characters, those which change the direction of what follows or cannot be seen, and no characters.
 */
static bool is_unprintable(uint32_t c)
{
        return c < 0x20 || (c >= 0x7f && c < 0xa0) || (c >= 0x200b && c <= 0x200f) ||
               (c >= 0x2028 && c <= 0x202e) || (c >= 0x2060 && c <= 0x206f) || c == 0xfeff ||
               (c >= 0xfff0 && c <= 0xfffb) || (c & 0xfffe) == 0xfffe;
}

char *ctl_clean(const char *s)
{
        char *clean, *p;

        s = strempty(s);
        /* A byte gives four characters at most (\xNN), an unprintable character of two or three bytes six.
         */
        clean = p = malloc(strlen(s) * 4 + 1);
        if (!clean)
                return NULL;
        while (*s != '\0') {
                size_t n;
                uint32_t c = decode(s, &n);

                if (c == 0)
                        p += sprintf(p, "\\x%02x", (unsigned char) *s);
                else if (c == '\n' || c == '\t')
                        *p++ = ' ';
                else if (is_unprintable(c))
                        p += sprintf(p, n == 1 ? "\\x%02x" : n < 4 ? "\\u%04x" : "\\U%08x", c);
                else
                        p = mempcpy(p, s, n);
                s += n;
        }
        *p = '\0';
        return clean;
}

size_t ctl_width(const char *s)
{
        size_t n = 0;

        for (; *s != '\0'; s++)
                if (((unsigned char) *s & 0xc0) != 0x80)
                        n++;
        return n;
}

char *ctl_format_usec(char buf[static CTL_FORMAT_MAX], uint64_t usec)
{
        /* UNIT and the step at which the number of decimals falls, so that three digits remain. */
        static const struct {
                uint64_t below, unit;
                int decimals;
                const char *name;
        } steps[] = {
                { 9995, 1000, 2, "ms" },      { 99950, 1000, 1, "ms" },      { 999500, 1000, 0, "ms" },
                { 9995000, 1000000, 2, "s" }, { 59950000, 1000000, 1, "s" },
        };
        uint64_t seconds;

        if (usec < 1000) {
                snprintf(buf, CTL_FORMAT_MAX, "%" PRIu64 " us", usec);
                return buf;
        }
        for (size_t i = 0; i < ELEMENTSOF(steps); i++)
                if (usec < steps[i].below) {
                        snprintf(buf, CTL_FORMAT_MAX, "%.*f %s", steps[i].decimals,
                                 (double) usec / (double) steps[i].unit, steps[i].name);
                        return buf;
                }

        seconds = usec / USEC_PER_SEC + (usec % USEC_PER_SEC >= USEC_PER_SEC / 2);
        if (seconds < 3600)
                snprintf(buf, CTL_FORMAT_MAX, "%" PRIu64 " min %" PRIu64 " s", seconds / 60, seconds % 60);
        else if (seconds < (uint64_t) 48 * 3600)
                snprintf(buf, CTL_FORMAT_MAX, "%" PRIu64 " h %" PRIu64 " min", seconds / 3600,
                         seconds % 3600 / 60);
        else
                snprintf(buf, CTL_FORMAT_MAX, "%" PRIu64 " d %" PRIu64 " h", seconds / 86400,
                         seconds % 86400 / 3600);
        return buf;
}

char *ctl_format_bytes(char buf[static CTL_FORMAT_MAX], uint64_t bytes)
{
        static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
        double n = (double) bytes;
        size_t i = 0;

        for (; n >= 1024 && i + 1 < ELEMENTSOF(units); i++)
                n /= 1024;
        /* Memory mostly comes in whole units. */
        snprintf(buf, CTL_FORMAT_MAX, "%.*f %s", n == (double) (uint64_t) n || n >= 100 ? 0 : 1, n,
                 units[i]);
        return buf;
}

char *ctl_format_realtime(char buf[static CTL_FORMAT_MAX], uint64_t usec)
{
        time_t t = (time_t) (usec / USEC_PER_SEC);
        struct tm tm;

        if (!localtime_r(&t, &tm) || strftime(buf, CTL_FORMAT_MAX, "%Y-%m-%d %H:%M:%S %Z", &tm) == 0)
                snprintf(buf, CTL_FORMAT_MAX, "@%" PRIu64, usec / USEC_PER_SEC);
        return buf;
}

void ctl_table_add(Table *t, const char *text, Style style)
{
        _cleanup_free_ char *clean = ctl_clean(text && *text != '\0' ? text : "-");
        Cell *cells;

        cells = clean ? reallocarray(t->cells, t->n_cells + 1, sizeof(Cell)) : NULL;
        if (!cells) {
                t->failed = true;
                return;
        }
        t->cells = cells;
        t->cells[t->n_cells++] = (Cell) { TAKE_PTR(clean), style };
}

void ctl_table_addf(Table *t, Style style, const char *format, ...)
{
        _cleanup_free_ char *text = NULL;
        va_list ap;

        va_start(ap, format);
        text = luv_strfv(format, ap);
        va_end(ap);
        if (!text) {
                t->failed = true;
                return;
        }
        ctl_table_add(t, text, style);
}

int ctl_table_print(const Table *t, const Terminal *terminal)
{
        _cleanup_free_ size_t *widths = NULL;
        size_t last = 0;

        if (t->failed)
                return -ENOMEM;
        assert(t->n_cells % t->n_columns == 0);
        widths = calloc(t->n_columns, sizeof(size_t)); /* 0: the column has nothing to show */
        if (!widths)
                return -ENOMEM;

        for (size_t i = 0; i < t->n_cells; i++)
                if (!streq(t->cells[i].text, "-"))
                        widths[i % t->n_columns] =
                                        MAX(widths[i % t->n_columns], ctl_width(t->cells[i].text));
        for (size_t c = 0; c < t->n_columns; c++)
                if (widths[c] > 0) {
                        widths[c] = MAX(widths[c], ctl_width(t->titles[c]));
                        last = c;
                }

        for (size_t row = 0; row <= t->n_cells / t->n_columns; row++) {
                const char *space = "";

                for (size_t c = 0; c < t->n_columns; c++) {
                        const Cell *cell = row == 0 ? NULL : &t->cells[(row - 1) * t->n_columns + c];
                        const char *text = cell ? cell->text : t->titles[c];
                        Style style = cell ? cell->style : STYLE_DIM;
                        int pad;

                        if (widths[c] == 0)
                                continue;
                        /* Nothing stands behind it, so nothing is written to get there. */
                        if (c == last && strspn(text, " ") == strlen(text))
                                continue;
                        pad = (int) (widths[c] - ctl_width(text));
                        fprintf(terminal->f, "%s%*s%s%s%s%*s", space, t->right >> c & 1 ? pad : 0, "",
                                ctl_style(terminal, style), text, ctl_style_off(terminal, style),
                                t->right >> c & 1 || c == last ? 0 : pad, "");
                        space = "  ";
                }
                fputc('\n', terminal->f);
        }
        return 0;
}

void ctl_table_done(Table *t)
{
        for (size_t i = 0; i < t->n_cells; i++)
                free(t->cells[i].text);
        free(t->cells);
        *t = (Table) {};
}
