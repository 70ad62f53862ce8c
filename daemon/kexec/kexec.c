/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <linux/kexec.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "kexec/kexec-internal.h"
#include "util/io.h"

/* A part of a file as a file of its own, which the kernel wants. */
static int extract(int fd, const KexecPart *part, const char *name)
{
        const size_t chunk = (size_t) 1024 * 1024;
        _cleanup_free_ uint8_t *buffer = malloc(chunk);
        _cleanup_close_ int copy = -EBADF;
        int r;

        if (!buffer)
                return -ENOMEM;
        copy = memfd_create(name, MFD_CLOEXEC);
        if (copy < 0)
                return negative_errno();
        for (uint64_t at = 0; at < part->size;) {
                size_t n = (size_t) MIN((uint64_t) chunk, part->size - at);

                r = luv_pread_all(fd, buffer, n, (off_t) (part->offset + at));
                if (r >= 0)
                        r = luv_write_all(copy, buffer, n);
                if (r < 0)
                        return r;
                at += n;
        }
        return TAKE_FD(copy);
}

int luv_kexec_load(int kernel_fd, int initrd_fd, const char *cmdline)
{
        _cleanup_close_ int kernel_copy = -EBADF, initrd_copy = -EBADF;
        KexecPart kernel, initrd;
        unsigned long flags;
        int r;

        r = luv_kexec_locate(kernel_fd, &kernel, &initrd, NULL);
        if (r < 0)
                return r;
        if (kernel.offset > 0) {
                kernel_copy = extract(kernel_fd, &kernel, "luvfio-kernel");
                if (kernel_copy < 0)
                        return kernel_copy;
                if (initrd_fd < 0 && initrd.size > 0) {
                        initrd_copy = extract(kernel_fd, &initrd, "luvfio-initrd");
                        if (initrd_copy < 0)
                                return initrd_copy;
                        initrd_fd = initrd_copy;
                }
                kernel_fd = kernel_copy;
        }

        flags = initrd_fd < 0 ? KEXEC_FILE_NO_INITRAMFS : 0;
        if (syscall(SYS_kexec_file_load, kernel_fd, initrd_fd < 0 ? -1 : initrd_fd, strlen(cmdline) + 1,
                    cmdline, flags) < 0)
                return negative_errno();
        return 0;
}

int luv_kexec_unload(void)
{
        if (syscall(SYS_kexec_file_load, -1, -1, 0ul, NULL, (unsigned long) KEXEC_FILE_UNLOAD) < 0)
                return negative_errno();
        return 0;
}

int luv_kexec_loaded(void)
{
        _cleanup_free_ char *text = NULL;
        int r;

        r = luv_read_line_file(AT_FDCWD, "/sys/kernel/kexec_loaded", &text);
        if (r < 0)
                return r;
        return streq(text, "1");
}
