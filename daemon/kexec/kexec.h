/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "util/macro.h"

/* The image that is jumped into: what it is, whether it will do, loading it. */

typedef struct KexecImage {
        char *release; /* uname -r of the image, from its boot header; NULL if it is not a kernel */
        char *abi;     /* live-update ABIs it reads and writes, a line each: "KIND NAME MODE"; NULL: none */
        uint64_t size;
} KexecImage;

void luv_kexec_image_done(KexecImage *i);

/*
 * Reads the image with pread only. -ENOEXEC: no x86 bzImage (nor a UKI that holds one); *ret_reason says
 * what is wrong with it. An image without ABI table is no error here.
 */
int luv_kexec_inspect(int kernel_fd, KexecImage *ret, char **ret_reason);

/*
 * Every (kind, name) that RUNNING writes ('w' in its mode) must be read ('r') by TARGET. NULL is a kernel
 * that does not say. 0, or -EPROTONOSUPPORT with a sentence that names the first one that is not.
 */
int luv_kexec_abi_compatible(const char *running, const char *target, char **ret_reason);

/* kho and liveupdate on, IOMMU not off. 0, or -EINVAL with a sentence that names what is missing. */
int luv_kexec_check_cmdline(const char *cmdline, char **ret_reason);

/* The running kernel's command line without what the boot loader added (BOOT_IMAGE=, initrd=). Caller frees.
 */
int luv_kexec_running_cmdline(char **ret);
/* The same of any command line. */
int luv_kexec_clean_cmdline(const char *cmdline, char **ret);

/*
 * kexec_file_load(2), never kexec_load(2). INITRD_FD may be negative: then a UKI's own is taken.
 * -EADDRNOTAVAIL: does not fit KHO scratch.
 */
int luv_kexec_load(int kernel_fd, int initrd_fd, const char *cmdline);
int luv_kexec_unload(void);
/* 1 if an image is loaded, 0 if not; -ENOENT: no kexec in this kernel. */
int luv_kexec_loaded(void);
