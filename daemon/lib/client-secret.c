/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <sys/stat.h>

#include "lib/client.h"

_public_ int luvfio_load_secret(struct luvfio *l, const char *path)
{
        char secret[CLIENT_SECRET_LENGTH + 2] = {};
        _cleanup_close_ int fd = -EBADF;
        struct stat st;
        ssize_t n;

        fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
        if (fd < 0)
                return luv_client_fail(l, negative_errno(), "secret of machine '%s': %s: %m", l->machine,
                                       path);
        if (fstat(fd, &st) < 0)
                return luv_client_fail(l, negative_errno(), "secret of machine '%s': %s: %m", l->machine,
                                       path);
        if (!S_ISREG(st.st_mode))
                return luv_client_fail(l, -EBADMSG, "secret of machine '%s': %s is no regular file",
                                       l->machine, path);

        n = read(fd, secret, sizeof(secret));
        if (n < 0)
                return luv_client_fail(l, negative_errno(), "secret of machine '%s': %s: %m", l->machine,
                                       path);
        if (n == CLIENT_SECRET_LENGTH + 1 && secret[CLIENT_SECRET_LENGTH] == '\n')
                n--;
        if (n != CLIENT_SECRET_LENGTH)
                secret[0] = 0;
        secret[CLIENT_SECRET_LENGTH] = 0;
        if (!luv_client_secret_is_valid(secret))
                return luv_client_fail(l, -EBADMSG, "secret of machine '%s': %s does not hold one",
                                       l->machine, path);
        return luvfio_set_secret(l, secret);
}

static int sync_directory_of(const char *path)
{
        _cleanup_free_ char *directory = strdup(path);
        _cleanup_close_ int fd = -EBADF;
        char *slash;

        if (!directory)
                return -ENOMEM;
        slash = strrchr(directory, '/');
        if (slash)
                slash[1] = 0;
        fd = open(slash ? directory : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        return fd < 0 || fsync(fd) < 0 ? negative_errno() : 0;
}

_public_ int luvfio_save_secret(struct luvfio *l, const char *path)
{
        _cleanup_free_ char *temporary = NULL;
        _cleanup_close_ int fd = -EBADF;
        char line[CLIENT_SECRET_LENGTH + 2];
        int r, n;

        if (!l->secret)
                return luv_client_fail(l, -ENODATA, "secret of machine '%s': there is none yet", l->machine);
        if (asprintf(&temporary, "%s.XXXXXX", path) < 0) {
                temporary = NULL;
                return luv_client_fail(l, -ENOMEM, "secret of machine '%s': out of memory", l->machine);
        }

        /* mkostemp makes it 0600. */
        fd = mkostemp(temporary, O_CLOEXEC);
        if (fd < 0)
                return luv_client_fail(l, negative_errno(), "secret of machine '%s': %s: %m", l->machine,
                                       temporary);
        n = snprintf(line, sizeof(line), "%s\n", l->secret);
        errno = 0;
        if (write(fd, line, (size_t) n) != n || fsync(fd) < 0 || rename(temporary, path) < 0) {
                r = negative_errno();
                (void) unlink(temporary);
        } else
                r = sync_directory_of(path);
        if (r < 0)
                return luv_client_fail(l, r, "secret of machine '%s': %s: %s", l->machine, path,
                                       strerror(-r));
        return 0;
}
