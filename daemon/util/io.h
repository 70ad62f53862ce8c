/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sys/types.h>

#include "util/macro.h"

/* Whole reads and writes. Paths are relative to DIR_FD (AT_FDCWD) where there is one. */

/* From where FD stands to its end; -EFBIG if that is more than MAX bytes. A 0 byte is added, not counted. */
int luv_read_fd(int fd, size_t max, char **ret, size_t *ret_size);
int luv_read_file(int dir_fd, const char *path, size_t max, char **ret, size_t *ret_size);
/* A small file of /proc, /sys or the like (at most 64 KiB), without the newline at its end. */
int luv_read_line_file(int dir_fd, const char *path, char **ret);
/* All of SIZE bytes at OFFSET; -ENODATA if the file ends before. */
int luv_pread_all(int fd, void *buffer, size_t size, off_t offset);

int luv_write_all(int fd, const void *data, size_t size);
/* One write(2), as sysfs and cgroupfs want it; the file must exist. */
int luv_write_attribute(int dir_fd, const char *path, const char *value);
/* The file has either its old content or all of the new, over a crash too. */
int luv_write_file_atomic(int dir_fd, const char *path, const void *data, size_t size, mode_t mode);

/* A new memfd with DATA, sealed against every change. Returns the fd. */
int luv_memfd_sealed(const char *name, const void *data, size_t size);

int luv_fd_set_cloexec(int fd, bool cloexec);
