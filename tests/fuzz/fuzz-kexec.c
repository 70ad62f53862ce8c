/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What is read of a kernel before it is loaded: 'I' an image, 'A' two ABI tables (0 byte between), 'C' a
 * command line. */

#include "fuzz.h"
#include "kexec/kexec.h"

static void image(const uint8_t *data, size_t size)
{
        _cleanup_(luv_kexec_image_done) KexecImage i = {};
        _cleanup_free_ char *reason = NULL;
        _cleanup_close_ int fd = -EBADF;
        int r;

        fd = fuzz_memfd(data, size);
        r = luv_kexec_inspect(fd, &i, &reason);
        if (r < 0) {
                FUZZ_REQUIRE(!i.release && !i.abi);
                FUZZ_REQUIRE(r == -ENOMEM || (reason && *reason));
                return;
        }
        /* The whole file, or what a UKI holds of it. */
        FUZZ_REQUIRE(i.release && i.size <= size);
        if (i.abi) {
                _cleanup_free_ char *why = NULL;

                /* A table that was accepted is compatible with itself or says why not. */
                r = luv_kexec_abi_compatible(i.abi, i.abi, &why);
                FUZZ_REQUIRE(r >= 0 || why);
        }
}

static void abi(const uint8_t *data, size_t size)
{
        const uint8_t *middle = memchr(data, 0, size);
        _cleanup_free_ char *a = NULL, *b = NULL, *reason = NULL;
        size_t n = middle ? (size_t) (middle - data) : size;
        int r;

        a = fuzz_string(data, n);
        b = middle ? fuzz_string(middle + 1, size - n - 1) : fuzz_string(data, n);
        r = luv_kexec_abi_compatible(a, b, &reason);
        FUZZ_REQUIRE(r >= 0 || r == -ENOMEM || (reason && *reason));
}

static void command_line(const uint8_t *data, size_t size)
{
        _cleanup_free_ char *s = NULL, *reason = NULL;
        int r;

        s = fuzz_string(data, size);
        r = luv_kexec_check_cmdline(s, &reason);
        FUZZ_REQUIRE(r >= 0 || r == -ENOMEM || (reason && *reason));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        if (size < 1)
                return 0;
        fuzz_quiet();
        switch (data[0]) {
        case 'I':
                image(data + 1, size - 1);
                break;
        case 'A':
                abi(data + 1, size - 1);
                break;
        case 'C':
                command_line(data + 1, size - 1);
                break;
        default:
                break;
        }
        return 0;
}
