/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "util/io.h"
#include "util/string-util.h"

#define LINE_FILE_MAX ((size_t) 64 * 1024)

int luv_read_fd(int fd, size_t max, char **ret, size_t *ret_size)
{
        _cleanup_free_ char *data = NULL;
        size_t size = 0, allocated = 0;

        /* One byte above MAX is asked for, to see that there is more. */
        for (;;) {
                ssize_t n;

                if (size == allocated) {
                        size_t more = MAX(MIN(allocated * 2, max + 1), MIN((size_t) 4096, max + 1));
                        char *p = realloc(data, more + 1);

                        if (!p)
                                return -ENOMEM;
                        data = p;
                        allocated = more;
                }
                n = read(fd, data + size, allocated - size);
                if (n < 0) {
                        if (errno == EINTR)
                                continue;
                        return negative_errno();
                }
                if (n == 0)
                        break;
                size += (size_t) n;
                if (size > max)
                        return -EFBIG;
        }

        data[size] = 0;
        *ret = TAKE_PTR(data);
        if (ret_size)
                *ret_size = size;
        return 0;
}

int luv_read_file(int dir_fd, const char *path, size_t max, char **ret, size_t *ret_size)
{
        _cleanup_close_ int fd = -EBADF;

        fd = openat(dir_fd, path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
        if (fd < 0)
                return negative_errno();
        return luv_read_fd(fd, max, ret, ret_size);
}

int luv_read_line_file(int dir_fd, const char *path, char **ret)
{
        size_t size;
        char *s;
        int r;

        r = luv_read_file(dir_fd, path, LINE_FILE_MAX, &s, &size);
        if (r < 0)
                return r;
        if (size > 0 && s[size - 1] == '\n')
                s[size - 1] = 0;
        *ret = s;
        return 0;
}

int luv_pread_all(int fd, void *buffer, size_t size, off_t offset)
{
        uint8_t *p = buffer;

        while (size > 0) {
                ssize_t n = pread(fd, p, size, offset);

                if (n < 0) {
                        if (errno == EINTR)
                                continue;
                        return negative_errno();
                }
                if (n == 0)
                        return -ENODATA;
                p += n;
                offset += n;
                size -= (size_t) n;
        }
        return 0;
}

int luv_write_all(int fd, const void *data, size_t size)
{
        const uint8_t *p = data;

        while (size > 0) {
                ssize_t n = write(fd, p, size);

                if (n < 0) {
                        if (errno == EINTR)
                                continue;
                        return negative_errno();
                }
                if (n == 0)
                        return -EIO;
                p += n;
                size -= (size_t) n;
        }
        return 0;
}

int luv_write_attribute(int dir_fd, const char *path, const char *value)
{
        _cleanup_close_ int fd = -EBADF;
        size_t size = strlen(value);
        ssize_t n;

        fd = openat(dir_fd, path, O_WRONLY | O_CLOEXEC | O_NOCTTY);
        if (fd < 0)
                return negative_errno();
        do
                n = write(fd, value, size);
        while (n < 0 && errno == EINTR);
        if (n < 0)
                return negative_errno();
        return (size_t) n == size ? 0 : -EIO;
}

/* So that the rename itself is on disk. */
static int sync_parent(int dir_fd, const char *path)
{
        _cleanup_free_ char *parent = NULL;
        _cleanup_close_ int fd = -EBADF;
        const char *slash = strrchr(path, '/');

        parent = !slash ? strdup(".") : slash == path ? strdup("/") : strndup(path, (size_t) (slash - path));
        if (!parent)
                return -ENOMEM;
        fd = openat(dir_fd, parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0)
                return negative_errno();
        return fsync(fd) < 0 ? negative_errno() : 0;
}

int luv_write_file_atomic(int dir_fd, const char *path, const void *data, size_t size, mode_t mode)
{
        _cleanup_free_ char *temporary = NULL;
        _cleanup_close_ int fd = -EBADF;
        char id[LUVFIO_ID_SIZE];
        int r;

        luv_random_id(id);
        temporary = luv_strf("%s.%.8s", path, id);
        if (!temporary)
                return -ENOMEM;
        fd = openat(dir_fd, temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
        if (fd < 0)
                return negative_errno();

        r = luv_write_all(fd, data, size);
        if (r >= 0 && fsync(fd) < 0)
                r = negative_errno();
        if (r >= 0 && renameat(dir_fd, temporary, dir_fd, path) < 0)
                r = negative_errno();
        if (r < 0) {
                (void) unlinkat(dir_fd, temporary, 0);
                return r;
        }
        return sync_parent(dir_fd, path);
}

int luv_memfd_sealed(const char *name, const void *data, size_t size)
{
        _cleanup_close_ int fd = -EBADF;
        int r;

        fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
        /* Kernels before 6.3 know no MFD_NOEXEC_SEAL. */
        if (fd < 0 && errno == EINVAL)
                fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
        if (fd < 0)
                return negative_errno();
        r = luv_write_all(fd, data, size);
        if (r < 0)
                return r;
        if (lseek(fd, 0, SEEK_SET) < 0)
                return negative_errno();
        if (fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0)
                return negative_errno();
        return TAKE_FD(fd);
}

int luv_fd_set_cloexec(int fd, bool cloexec)
{
        int flags;

        flags = fcntl(fd, F_GETFD);
        if (flags < 0)
                return negative_errno();
        flags = cloexec ? flags | FD_CLOEXEC : flags & ~FD_CLOEXEC;
        return fcntl(fd, F_SETFD, flags) < 0 ? negative_errno() : 0;
}
