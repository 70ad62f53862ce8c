/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>

#include "agents/qemu-config.h"
#include "util/io.h"
#include "util/string-util.h"

#define CONFIG_SIZE_MAX ((size_t) 1024 * 1024)
#define BLANKS " \t\r"

static int add(char ***argv, const char *from, size_t n)
{
        _cleanup_free_ char *s = strndup(from, n);

        return s ? luv_strv_extend(argv, s) : -ENOMEM;
}

static int add_line(char ***argv, const char *line, size_t n)
{
        size_t word;
        int r;

        while (n > 0 && strchr(BLANKS, line[n - 1]))
                n--;
        for (; n > 0 && strchr(BLANKS, *line); n--)
                line++;
        if (n == 0 || *line == '#')
                return 0;
        word = *line == '-' ? MIN(strcspn(line, BLANKS), n) : n;
        r = add(argv, line, word);
        if (r < 0 || word == n)
                return r;
        word += strspn(line + word, BLANKS);
        return add(argv, line + word, n - word);
}

int luv_qemu_config_parse(const char *text, char ***ret_argv)
{
        _cleanup_strv_ char **argv = NULL;
        int r = 0;

        while (*text && r >= 0) {
                size_t n = strcspn(text, "\n");

                r = add_line(&argv, text, n);
                text += n + (text[n] == '\n');
        }
        if (r < 0)
                return r;
        if (!argv || argv[0][0] == '-')
                return -EBADMSG;
        *ret_argv = TAKE_PTR(argv);
        return 0;
}

int luv_qemu_config_read(const char *path, char ***ret_argv)
{
        _cleanup_free_ char *text = NULL;
        size_t size;
        int r;

        r = luv_read_file(AT_FDCWD, path, CONFIG_SIZE_MAX, &text, &size);
        if (r >= 0 && strlen(text) != size)
                r = -EBADMSG;
        return r < 0 ? r : luv_qemu_config_parse(text, ret_argv);
}
