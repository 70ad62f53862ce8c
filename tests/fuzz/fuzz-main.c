/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* Stands for libFuzzer where the compiler has none: runs files, and those of folders, through the target. */

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "fuzz.h"
#include "util/io.h"
#include "util/macro.h"

static int run(const char *path, unsigned *n)
{
        _cleanup_free_ uint8_t *exact = NULL;
        _cleanup_free_ char *data = NULL;
        size_t size;
        int r;

        r = luv_read_file(AT_FDCWD, path, (size_t) 64 * 1024 * 1024, &data, &size);
        if (r < 0) {
                fprintf(stderr, "cannot read %s: %s\n", path, strerror(-r));
                return r;
        }
        /* Of exactly that size, so that a sanitizer sees a read beyond it. */
        exact = malloc(size ? size : 1);
        FUZZ_REQUIRE(exact);
        memcpy(exact, data, size);
        (void) LLVMFuzzerTestOneInput(exact, size);
        (*n)++;
        return 0;
}

static int visible(const struct dirent *e)
{
        return e->d_name[0] != '.';
}

static int run_folder(const char *path, unsigned *n)
{
        struct dirent **entries;
        int n_entries, r = 0;

        /* All names first: a target may want the low fds for itself. */
        n_entries = scandir(path, &entries, visible, alphasort);
        if (n_entries < 0)
                return negative_errno();
        for (int i = 0; i < n_entries; i++) {
                char *file = NULL;

                if (r >= 0 && asprintf(&file, "%s/%s", path, entries[i]->d_name) < 0)
                        r = -ENOMEM;
                if (r >= 0)
                        r = run(file, n);
                free(file);
                free(entries[i]);
        }
        free(entries);
        return r;
}

int main(int argc, char *argv[])
{
        unsigned n = 0;
        int r;

        /* As libFuzzer does first. */
        (void) LLVMFuzzerTestOneInput(NULL, 0);

        for (int i = 1; i < argc; i++) {
                struct stat st;

                if (stat(argv[i], &st) < 0) {
                        fprintf(stderr, "cannot find %s: %s\n", argv[i], strerror(errno));
                        return EXIT_FAILURE;
                }
                r = S_ISDIR(st.st_mode) ? run_folder(argv[i], &n) : run(argv[i], &n);
                if (r < 0)
                        return EXIT_FAILURE;
        }
        printf("%u inputs\n", n);
        return n > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
