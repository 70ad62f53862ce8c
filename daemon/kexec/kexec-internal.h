/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "kexec/kexec.h"

typedef struct KexecPart {
        uint64_t offset, size; /* size 0: there is none */
} KexecPart;

/* Where the kernel, and a UKI's initrd, are in the file. Errors as luv_kexec_inspect(). */
int luv_kexec_locate(int kernel_fd, KexecPart *ret_kernel, KexecPart *ret_initrd, char **ret_reason);
