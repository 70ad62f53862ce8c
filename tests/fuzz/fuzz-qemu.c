/* SPDX-License-Identifier: LGPL-2.1-or-later */

/*
 * What QEMU hands over, and the record of it. The first byte says how the rest is to be taken: 'C' as a CPR
 * state, whose fds the next byte counts; 'D' as the JSON of a record, in an envelope that is right; 'I' as
 * /proc/interrupts; 'F' as a file with a command line.
 */

#include <fcntl.h>

#include "agents/cpr.h"
#include "agents/qemu-config.h"
#include "agents/qemu-document.h"
#include "agents/vfio-irq.h"
#include "fuzz.h"
#include "util/crc32c.h"
#include "util/string-util.h"

#define ENVELOPE_SIZE 28u

static void cpr(const uint8_t *data, size_t size)
{
        _cleanup_cpr_state_ CprState s = {};
        _cleanup_free_ char *reason = NULL;
        int fds[16];
        size_t n, left = 0;
        int r;

        if (size < 1)
                return;
        n = data[0] % (ELEMENTSOF(fds) + 1);
        for (size_t i = 0; i < n; i++) {
                fds[i] = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
                FUZZ_REQUIRE(fds[i] >= 0);
        }
        r = luv_cpr_parse(data + 1, size - 1, fds, n, &s, &reason);
        for (size_t i = 0; i < n; i++) {
                left += fds[i] >= 0;
                safe_close(fds[i]);
        }
        FUZZ_REQUIRE(r >= 0 || r == -ENOMEM || (reason && *reason));
        if (r < 0)
                FUZZ_REQUIRE(s.n_fds == 0 && s.n_devices == 0);
        else
                FUZZ_REQUIRE(s.n_fds == n && left == 0);
        for (size_t i = 0; i < s.n_fds; i++)
                FUZZ_REQUIRE(luv_cpr_find_fd(&s, s.fds[i].name, s.fds[i].id) == &s.fds[i]);
}

static void put(uint8_t *p, uint64_t v, size_t n)
{
        for (size_t i = 0; i < n; i++)
                p[i] = (uint8_t) (v >> (8 * i));
}

static void document(const uint8_t *data, size_t size)
{
        _cleanup_(luv_qemu_document_freep) QemuDocument *d = NULL, *again = NULL;
        _cleanup_free_ uint8_t *whole = malloc(ENVELOPE_SIZE + size);
        _cleanup_free_ char *reason = NULL, *reason2 = NULL;
        _cleanup_close_ int fd = -EBADF, copy = -EBADF;
        int r;

        FUZZ_REQUIRE(whole);
        memcpy(whole, "LUVFIODC", 8);
        put(whole + 8, 1, 2);
        put(whole + 10, 1, 2);
        put(whole + 12, 3, 4);
        put(whole + 16, size, 8);
        put(whole + 24, luv_crc32c_extend(luv_crc32c(whole, 24), data, size), 4);
        memcpy(whole + ENVELOPE_SIZE, data, size);
        fd = fuzz_memfd(whole, ENVELOPE_SIZE + size);
        r = luv_qemu_document_read(fd, &d, &reason);
        if (r < 0) {
                FUZZ_REQUIRE(!d && (r == -ENOMEM || (reason && *reason)));
                return;
        }
        r = luv_qemu_document_write(d, &copy, &reason2);
        FUZZ_REQUIRE(r >= 0);
        r = luv_qemu_document_read(copy, &again, &reason2);
        FUZZ_REQUIRE(r >= 0);
        FUZZ_REQUIRE(streq(d->version, again->version) && streq_ptr(d->cwd, again->cwd));
        FUZZ_REQUIRE(luv_strv_length(d->argv) == luv_strv_length(again->argv));
        FUZZ_REQUIRE(d->n_eventfds == again->n_eventfds && d->n_preserved == again->n_preserved);
        for (size_t i = 0; i < d->n_eventfds; i++)
                FUZZ_REQUIRE(d->eventfds[i].irq == again->eventfds[i].irq &&
                             d->eventfds[i].vector < VFIO_VECTORS_MAX);
}

static void text(const uint8_t *data, size_t size, bool interrupts)
{
        _cleanup_free_ char *s = calloc(1, size + 1);
        _cleanup_strv_ char **argv = NULL;
        VfioWired w;

        FUZZ_REQUIRE(s);
        memcpy(s, data, size);
        if (interrupts) {
                luv_vfio_wired_parse(s, "0000:01:00.0", &w);
                FUZZ_REQUIRE(w.n <= VFIO_VECTORS_MAX && (w.n == 0) == (w.type < 0));
                FUZZ_REQUIRE(w.n == 0 || w.vectors[w.n - 1]);
        } else if (luv_qemu_config_parse(s, &argv) >= 0)
                FUZZ_REQUIRE(argv && argv[0] && argv[0][0] != '-');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        if (size < 1)
                return 0;
        fuzz_quiet();
        switch (data[0]) {
        case 'C':
                cpr(data + 1, size - 1);
                break;
        case 'D':
                document(data + 1, size - 1);
                break;
        case 'I':
        case 'F':
                text(data + 1, size - 1, data[0] == 'I');
                break;
        default:
                break;
        }
        return 0;
}
