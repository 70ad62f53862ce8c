/* SPDX-License-Identifier: LGPL-2.1-or-later */

/*
 * Loads an image by the old kexec_load(2), as other programs still do: nothing preserved would come over
 * such a jump. What is loaded is a page of `hlt`, and is never run.
 */

#include <errno.h>
#include <linux/kexec.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
        static unsigned char code[4096];
        struct kexec_segment segment = {
                .buf = code,
                .bufsz = sizeof(code),
                .mem = (void *) 0x4000000,
                .memsz = sizeof(code),
        };

        memset(code, 0xf4, sizeof(code));
        if (syscall(SYS_kexec_load, 0x4000000UL, 1UL, &segment, KEXEC_ARCH_X86_64) < 0) {
                fprintf(stderr, "kexec_load: %s\n", strerror(errno));
                return errno;
        }
        return 0;
}
