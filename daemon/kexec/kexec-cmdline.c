/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>

#include "kexec/kexec.h"
#include "util/io.h"
#include "util/string-util.h"

/* The next parameter as it stands, quotes and all; NULL at the end. */
static const char *next_parameter(const char **rest, size_t *ret_size)
{
        const char *start = *rest + strspn(*rest, " \t\n"), *p;
        bool quoted = false;

        if (!*start)
                return NULL;
        for (p = start; *p && (quoted || !strchr(" \t\n", *p)); p++)
                if (*p == '"')
                        quoted = !quoted;
        *rest = p;
        *ret_size = (size_t) (p - start);
        return start;
}

/* The value if the parameter is NAME=: as the kernel has it, - and _ are one, and quotes go around the value
 * or the whole. */
static bool parameter_value(const char *p, size_t size, const char *name, const char **ret, size_t *ret_size)
{
        if (size > 0 && p[0] == '"') {
                p++;
                size--;
                if (size > 0 && p[size - 1] == '"')
                        size--;
        }
        for (; *name; name++, p++, size--)
                if (size == 0 || (*p == '-' ? '_' : *p) != *name)
                        return false;
        if (size == 0 || *p != '=')
                return false;
        p++;
        size--;
        if (size > 0 && p[0] == '"') {
                p++;
                size--;
                if (size > 0 && p[size - 1] == '"')
                        size--;
        }
        *ret = p;
        *ret_size = size;
        return true;
}

/* The kernel's words for yes and no; anything else changes nothing. */
static void parse_switch(const char *v, size_t size, int *on)
{
        if (size == 0)
                return;
        if (strchr("yYtT1", v[0]))
                *on = 1;
        else if (strchr("nNfF0", v[0]))
                *on = 0;
        else if (size > 1 && (v[0] == 'o' || v[0] == 'O')) {
                if (v[1] == 'n' || v[1] == 'N')
                        *on = 1;
                else if (v[1] == 'f' || v[1] == 'F')
                        *on = 0;
        }
}

/* A list such as on,sm_on: the last of on and off. */
static void parse_list(const char *v, size_t size, int *on)
{
        while (size > 0) {
                size_t n = 0;

                while (n < size && v[n] != ',')
                        n++;
                if (n == 3 && memcmp(v, "off", 3) == 0)
                        *on = 0;
                else if (n == 2 && memcmp(v, "on", 2) == 0)
                        *on = 1;
                if (n < size)
                        n++;
                v += n;
                size -= n;
        }
}

int luv_kexec_check_cmdline(const char *cmdline, char **ret_reason)
{
        int kho = -1, liveupdate = -1, intel_iommu = -1, amd_iommu = -1, iommu = -1;
        const char *p, *v;
        size_t n, size;

        while ((p = next_parameter(&cmdline, &n))) {
                /* What comes after is init's. */
                if (n == 2 && memcmp(p, "--", 2) == 0)
                        break;
                if (parameter_value(p, n, "kho", &v, &size))
                        parse_switch(v, size, &kho);
                else if (parameter_value(p, n, "liveupdate", &v, &size))
                        parse_switch(v, size, &liveupdate);
                else if (parameter_value(p, n, "intel_iommu", &v, &size))
                        parse_list(v, size, &intel_iommu);
                else if (parameter_value(p, n, "amd_iommu", &v, &size))
                        parse_list(v, size, &amd_iommu);
                /* This one cannot be taken back by a later one. */
                else if (iommu != 0 && parameter_value(p, n, "iommu", &v, &size))
                        parse_list(v, size, &iommu);
        }

        if (kho != 1)
                return luv_reason(ret_reason, -EINVAL,
                                  kho == 0 ? "the command line turns kexec handover off (kho=off): it must "
                                             "say kho=on"
                                           : "the command line does not say kho=on");
        if (liveupdate != 1)
                return luv_reason(ret_reason, -EINVAL,
                                  liveupdate == 0 ? "the command line turns live update off "
                                                    "(liveupdate=off): it must say liveupdate=on"
                                                  : "the command line does not say liveupdate=on");
        if (intel_iommu == 0 || amd_iommu == 0 || iommu == 0)
                return luv_reason(ret_reason, -EINVAL, "the command line turns the IOMMU off (%s=off)",
                                  intel_iommu == 0 ? "intel_iommu"
                                  : amd_iommu == 0 ? "amd_iommu"
                                                   : "iommu");
        return 0;
}

int luv_kexec_clean_cmdline(const char *cmdline, char **ret)
{
        _cleanup_free_ char *clean = malloc(strlen(cmdline) + 1);
        const char *p, *v;
        size_t n, size;
        char *to = clean;
        bool inits = false;

        if (!clean)
                return -ENOMEM;
        while ((p = next_parameter(&cmdline, &n))) {
                if (n == 2 && memcmp(p, "--", 2) == 0)
                        inits = true;
                if (!inits && (parameter_value(p, n, "BOOT_IMAGE", &v, &size) ||
                               parameter_value(p, n, "initrd", &v, &size)))
                        continue;
                if (to > clean)
                        *to++ = ' ';
                to = mempcpy(to, p, n);
        }
        *to = 0;
        *ret = TAKE_PTR(clean);
        return 0;
}

int luv_kexec_running_cmdline(char **ret)
{
        _cleanup_free_ char *cmdline = NULL;
        int r;

        r = luv_read_line_file(AT_FDCWD, "/proc/cmdline", &cmdline);
        if (r < 0)
                return r;
        return luv_kexec_clean_cmdline(cmdline, ret);
}
