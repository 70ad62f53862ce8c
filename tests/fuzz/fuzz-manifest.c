/* SPDX-License-Identifier: LGPL-2.1-or-later */

/*
 * Host and machine records. The first byte says how the rest is to be taken: 'R' as the file is, 'H' and 'M'
 * as the JSON of a host or machine record in an envelope that is right, since a random checksum never is.
 */

#include "fuzz.h"
#include "restore/manifest.h"
#include "util/crc32c.h"

#define ENVELOPE_SIZE 28u

static void put(uint8_t *p, uint64_t v, size_t n)
{
        for (size_t i = 0; i < n; i++)
                p[i] = (uint8_t) (v >> (8 * i));
}

/* What was read can be written and is read again: a record must survive a second jump. */
static void host(int fd)
{
        _cleanup_(luv_host_record_freep) HostRecord *h = NULL, *again = NULL;
        _cleanup_free_ char *reason = NULL, *reason2 = NULL;
        _cleanup_close_ int copy = -EBADF;
        int r;

        r = luv_host_record_read(fd, &h, &reason);
        if (r < 0) {
                FUZZ_REQUIRE(!h);
                FUZZ_REQUIRE(r == -ENOMEM || (reason && *reason));
                return;
        }
        FUZZ_REQUIRE(h && h->update_id);
        r = luv_host_record_write(h, &copy);
        FUZZ_REQUIRE(r >= 0);
        r = luv_host_record_read(copy, &again, &reason2);
        FUZZ_REQUIRE(r >= 0);
        FUZZ_REQUIRE(streq_ptr(h->update_id, again->update_id));
        FUZZ_REQUIRE(h->n_sessions == again->n_sessions);
        for (size_t i = 0; i < h->n_sessions; i++) {
                FUZZ_REQUIRE(streq_ptr(h->sessions[i].machine, again->sessions[i].machine));
                FUZZ_REQUIRE(streq_ptr(h->sessions[i].session, again->sessions[i].session));
                FUZZ_REQUIRE(h->sessions[i].serial == again->sessions[i].serial);
        }
        FUZZ_REQUIRE(h->timeline.n_phases == again->timeline.n_phases);
}

static void machine(int fd)
{
        _cleanup_(luv_machine_record_freep) MachineRecord *m = NULL, *again = NULL;
        _cleanup_free_ char *reason = NULL, *reason2 = NULL;
        _cleanup_close_ int copy = -EBADF;
        int r;

        r = luv_machine_record_read(fd, &m, &reason);
        if (r < 0) {
                FUZZ_REQUIRE(!m);
                FUZZ_REQUIRE(r == -ENOMEM || (reason && *reason));
                return;
        }
        FUZZ_REQUIRE(m && m->name && m->secret && m->session);
        r = luv_machine_record_write(m, &copy);
        FUZZ_REQUIRE(r >= 0);
        r = luv_machine_record_read(copy, &again, &reason2);
        FUZZ_REQUIRE(r >= 0);
        FUZZ_REQUIRE(streq_ptr(m->name, again->name) && streq_ptr(m->secret, again->secret));
        FUZZ_REQUIRE(streq_ptr(m->unit, again->unit) && m->uid == again->uid);
        FUZZ_REQUIRE(m->generation == again->generation && m->serial == again->serial);
        FUZZ_REQUIRE(m->n_fds == again->n_fds && m->n_devices == again->n_devices);
        for (size_t i = 0; i < m->n_fds; i++) {
                FUZZ_REQUIRE(streq_ptr(m->fds[i].name, again->fds[i].name));
                FUZZ_REQUIRE(m->fds[i].kind == again->fds[i].kind && m->fds[i].token == again->fds[i].token);
                FUZZ_REQUIRE(m->fds[i].kind >= 0 && m->fds[i].kind < _FD_KIND_MAX);
                FUZZ_REQUIRE(m->fds[i].outcome >= 0 && m->fds[i].outcome < _FD_OUTCOME_MAX);
        }
        for (size_t i = 0; i < m->n_devices; i++)
                FUZZ_REQUIRE(streq_ptr(m->devices[i].plan, again->devices[i].plan));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        _cleanup_free_ uint8_t *document = NULL;
        _cleanup_close_ int fd = -EBADF;
        uint8_t how;

        if (size < 1)
                return 0;
        fuzz_quiet();
        how = *data++;
        size--;

        switch (how) {
        case 'R':
                fd = fuzz_memfd(data, size);
                break;
        case 'H':
        case 'M':
                document = malloc(ENVELOPE_SIZE + size);
                FUZZ_REQUIRE(document);
                memcpy(document, "LUVFIODC", 8);
                put(document + 8, 1, 2);
                put(document + 10, 1, 2);
                put(document + 12, how == 'H' ? 1 : 2, 4);
                put(document + 16, size, 8);
                put(document + 24, luv_crc32c_extend(luv_crc32c(document, 24), data, size), 4);
                memcpy(document + ENVELOPE_SIZE, data, size);
                fd = fuzz_memfd(document, ENVELOPE_SIZE + size);
                break;
        default:
                return 0;
        }
        host(fd);
        machine(fd);
        return 0;
}
