/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <limits.h>
#include <systemd/sd-id128.h>

#include "util/string-util.h"

char *luv_strfv(const char *format, va_list ap)
{
        char *s;

        /* On failure S is not to be relied on. */
        return vasprintf(&s, format, ap) < 0 ? NULL : s;
}

char *luv_strf(const char *format, ...)
{
        va_list ap;
        char *s;

        va_start(ap, format);
        s = luv_strfv(format, ap);
        va_end(ap);
        return s;
}

int luv_reason(char **ret_reason, int error, const char *format, ...)
{
        va_list ap;

        if (ret_reason) {
                va_start(ap, format);
                *ret_reason = luv_strfv(format, ap);
                va_end(ap);
        }
        return error;
}

char **luv_strv_free(char **v)
{
        for (char **p = v; p && *p; p++)
                free(*p);
        free(v);
        return NULL;
}

size_t luv_strv_length(char *const *v)
{
        size_t n = 0;

        while (v && v[n])
                n++;
        return n;
}

bool luv_strv_contains(char *const *v, const char *s)
{
        for (; v && *v; v++)
                if (streq(*v, s))
                        return true;
        return false;
}

int luv_strv_extend(char ***v, const char *s)
{
        _cleanup_free_ char *copy = strdup(s);
        size_t n = luv_strv_length(*v);
        char **grown;

        if (!copy)
                return -ENOMEM;
        grown = reallocarray(*v, n + 2, sizeof(char *));
        if (!grown)
                return -ENOMEM;
        grown[n] = TAKE_PTR(copy);
        grown[n + 1] = NULL;
        *v = grown;
        return 0;
}

int luv_strv_copy(char *const *v, char ***ret)
{
        size_t n = luv_strv_length(v);
        _cleanup_strv_ char **copy = calloc(n + 1, sizeof(char *));

        if (!copy)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++) {
                copy[i] = strdup(v[i]);
                if (!copy[i])
                        return -ENOMEM;
        }
        *ret = TAKE_PTR(copy);
        return 0;
}

char *luv_strv_join(char *const *v, const char *separator)
{
        char *joined = strdup("");

        for (size_t i = 0; joined && v && v[i]; i++) {
                char *more = luv_strf("%s%s%s", joined, i == 0 ? "" : separator, v[i]);

                free(joined);
                joined = more;
        }
        return joined;
}

int luv_free_and_strdup(char **p, const char *s)
{
        char *copy = NULL;

        if (s) {
                copy = strdup(s);
                if (!copy)
                        return -ENOMEM;
        }
        free(*p);
        *p = copy;
        return 0;
}

void luv_random_id(char ret[static LUVFIO_ID_SIZE])
{
        sd_id128_t id;

        /* Fails only where the kernel has no getrandom(2). */
        if (sd_id128_randomize(&id) < 0)
                abort();
        (void) sd_id128_to_string(id, ret);
}

static bool is_hex(char c)
{
        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
}

bool luv_id_valid(const char *s)
{
        size_t n = 0;

        if (!s)
                return false;
        while (is_hex(s[n]))
                n++;
        return n == LUVFIO_ID_SIZE - 1 && s[n] == 0;
}

static bool is_alnum(char c)
{
        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

bool luv_machine_name_valid(const char *s)
{
        size_t n;

        if (!s || !is_alnum(s[0]))
                return false;
        for (n = 1; s[n]; n++)
                if (n >= LUVFIO_MACHINE_NAME_MAX || (!is_alnum(s[n]) && !strchr("_.-", s[n])))
                        return false;
        return true;
}

bool luv_fd_name_valid(const char *s)
{
        size_t n;

        if (!s)
                return false;
        for (n = 0; s[n]; n++)
                if (n >= LUVFIO_FD_NAME_MAX || s[n] < 0x20 || s[n] > 0x7e)
                        return false;
        return n > 0;
}

/* Skips MIN to MAX hex digits; NULL if there are fewer. */
static const char *skip_hex(const char *s, size_t min, size_t max)
{
        size_t n = 0;

        while (n < max && is_hex(s[n]))
                n++;
        return n >= min ? s + n : NULL;
}

bool luv_pci_address_valid(const char *s)
{
        if (!s)
                return false;
        s = skip_hex(s, 4, 8);
        if (!s || *s++ != ':')
                return false;
        s = skip_hex(s, 2, 2);
        if (!s || *s++ != ':')
                return false;
        /* Five bits of device, three of function. */
        if (*s != '0' && *s != '1')
                return false;
        s = skip_hex(s, 2, 2);
        if (!s || *s++ != '.')
                return false;
        return *s >= '0' && *s <= '7' && s[1] == 0;
}

bool luv_utf8_valid(const char *s, size_t size)
{
        const uint8_t *p = (const uint8_t *) s;

        for (size_t i = 0; i < size;) {
                uint32_t c = p[i], least;
                size_t more;

                if (c == 0)
                        return false;
                if (c < 0x80) {
                        i++;
                        continue;
                }
                if (c >= 0xc0 && c < 0xe0) {
                        more = 1;
                        least = 0x80;
                        c &= 0x1f;
                } else if (c >= 0xe0 && c < 0xf0) {
                        more = 2;
                        least = 0x800;
                        c &= 0x0f;
                } else if (c >= 0xf0 && c < 0xf8) {
                        more = 3;
                        least = 0x10000;
                        c &= 0x07;
                } else {
                        return false;
                }
                if (more >= size - i)
                        return false;
                for (size_t k = 1; k <= more; k++) {
                        if ((p[i + k] & 0xc0) != 0x80)
                                return false;
                        c = c << 6 | (p[i + k] & 0x3f);
                }
                if (c < least || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
                        return false;
                i += more + 1;
        }
        return true;
}

int luv_parse_u64(const char *s, uint64_t *ret)
{
        uint64_t v = 0;

        if (!s || !*s)
                return -EINVAL;
        for (; *s; s++) {
                if (*s < '0' || *s > '9')
                        return -EINVAL;
                if (__builtin_mul_overflow(v, 10u, &v) ||
                    __builtin_add_overflow(v, (uint64_t) (*s - '0'), &v))
                        return -ERANGE;
        }
        *ret = v;
        return 0;
}

int luv_parse_timespan(const char *s, uint64_t *ret_usec)
{
        static const struct {
                const char *suffix;
                uint64_t usec;
        } units[] = {
                { "", USEC_PER_SEC }, { "s", USEC_PER_SEC },        { "ms", USEC_PER_MSEC },
                { "us", 1 },          { "min", 60 * USEC_PER_SEC },
        };
        _cleanup_free_ char *digits = NULL;
        uint64_t v;
        size_t n;
        int r;

        if (!s)
                return -EINVAL;
        n = strspn(s, "0123456789");
        digits = strndup(s, n);
        if (!digits)
                return -ENOMEM;
        r = luv_parse_u64(digits, &v);
        if (r < 0)
                return r;
        for (size_t i = 0; i < ELEMENTSOF(units); i++)
                if (streq(s + n, units[i].suffix)) {
                        if (__builtin_mul_overflow(v, units[i].usec, &v))
                                return -ERANGE;
                        *ret_usec = v;
                        return 0;
                }
        return -EINVAL;
}

int luv_parse_errno(const char *s)
{
        uint64_t v;

        if (luv_parse_u64(s, &v) >= 0)
                return v > 0 && v < 4096 ? (int) v : -EINVAL;
        for (int i = 1; s && i < 4096; i++)
                if (streq_ptr(strerrorname_np(i), s))
                        return i;
        return -EINVAL;
}
