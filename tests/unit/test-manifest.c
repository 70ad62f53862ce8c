/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <check.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "restore/manifest.h"
#include "util/crc32c.h"
#include "util/io.h"
#include "util/string-util.h"

#define ID "0123456789abcdef0123456789abcdef"
#define HEADER_SIZE 28

static HostRecord *make_host(void)
{
        HostRecord *h = calloc(1, sizeof(*h));

        ck_assert_ptr_nonnull(h);
        h->update_id = strdup(ID);
        h->from_kernel = strdup("7.3.4-a");
        h->to_kernel = strdup("7.3.4-b");
        h->boot_id = strdup("01234567-89ab-cdef-0123-456789abcdef");
        h->timeline.started_realtime_usec = 1;
        h->timeline.started_usec = 2;
        h->timeline.outgoing = (TimelineAnchor) { 3, 4, UINT64_C(0xfedcba9876543210), 5 };
        h->timeline.phases = calloc(2, sizeof(TimelinePhase));
        h->timeline.n_phases = 2;
        h->timeline.phases[0] = (TimelinePhase) { strdup("staging"), NULL, 1, 2, false };
        h->timeline.phases[1] = (TimelinePhase) { strdup("quiescing"), strdup("vm1"), 3, 0, true };
        ck_assert_int_eq(luv_strv_extend(&h->units, "ssh.service"), 0);
        ck_assert_int_eq(luv_strv_extend(&h->units, "a\\x2db.service"), 0);
        h->sessions = calloc(2, sizeof(SessionRecord));
        h->n_sessions = 2;
        h->sessions[0] = (SessionRecord) { strdup("vm1"), strdup("luvfio-vm1-1"), 1 };
        h->sessions[1] = (SessionRecord) { strdup("vm2"), strdup("luvfio-vm2-7"), LUVFIO_SERIAL_MAX };
        return h;
}

static MachineRecord *make_machine(void)
{
        MachineRecord *m = calloc(1, sizeof(*m));

        ck_assert_ptr_nonnull(m);
        m->name = strdup("vm1");
        m->secret = strdup(ID);
        m->unit = strdup("vm@1.service");
        m->vmm = strdup("example \303\244 1");
        m->session = strdup("luvfio-vm1-1");
        m->uid = 1000;
        m->generation = 3;
        m->serial = 5;
        m->stopped_usec = 12345;
        m->fds = calloc(4, sizeof(FdRecord));
        m->n_fds = 4;
        m->fds[0] = (FdRecord) { strdup("ram"), FD_KIND_MEMFD, FD_OUTCOME_PRESERVED,
                                 5 << 16 | 1,   1 << 28,       NULL };
        m->fds[1] = (FdRecord) { strdup("iommu"), FD_KIND_IOMMUFD, FD_OUTCOME_REBUILT, 0, 0, NULL };
        m->fds[2] = (FdRecord) { strdup("igb"),         FD_KIND_VFIO, FD_OUTCOME_RESET, 5 << 16 | 3, 0,
                                 strdup("0000:00:04.0") };
        m->fds[3] = (FdRecord) { strdup("state"), FD_KIND_STATE, FD_OUTCOME_PRESERVED,
                                 5 << 16 | 4,     4096,          NULL };
        m->devices = calloc(1, sizeof(DeviceRecord));
        m->n_devices = 1;
        m->devices[0] = (DeviceRecord) { strdup("0000:00:04.0"), strdup("vfio-pci"), strdup("reset"),
                                         strdup("{\"driver\":\"vfio-pci\"}") };
        return m;
}

static int write_machine(const MachineRecord *m)
{
        int fd = -EBADF;

        ck_assert_int_eq(luv_machine_record_write(m, &fd), 0);
        return fd;
}

START_TEST(host)
{
        _cleanup_(luv_host_record_freep) HostRecord *h = make_host(), *back = NULL;
        _cleanup_free_ char *reason = NULL;
        _cleanup_close_ int fd = -EBADF;

        ck_assert_int_eq(luv_host_record_write(h, &fd), 0);
        ck_assert_int_lt(ftruncate(fd, 0), 0);
        ck_assert_int_eq(luv_host_record_read(fd, &back, &reason), 0);
        ck_assert_str_eq(back->update_id, ID);
        ck_assert_str_eq(back->from_kernel, h->from_kernel);
        ck_assert_str_eq(back->to_kernel, h->to_kernel);
        ck_assert_str_eq(back->boot_id, h->boot_id);
        ck_assert_mem_eq(&back->timeline.outgoing, &h->timeline.outgoing, sizeof(TimelineAnchor));
        ck_assert_uint_eq(back->timeline.n_phases, 2);
        ck_assert_str_eq(back->timeline.phases[1].name, "quiescing");
        ck_assert_str_eq(back->timeline.phases[1].machine, "vm1");
        ck_assert(back->timeline.phases[1].incoming);
        ck_assert_ptr_null(back->timeline.phases[0].machine);
        ck_assert_uint_eq(luv_strv_length(back->units), 2);
        ck_assert_str_eq(back->units[1], "a\\x2db.service");
        ck_assert_uint_eq(back->n_sessions, 2);
        ck_assert_str_eq(back->sessions[1].session, "luvfio-vm2-7");
        ck_assert_uint_eq(back->sessions[1].serial, LUVFIO_SERIAL_MAX);
}
END_TEST

START_TEST(empty)
{
        _cleanup_(luv_host_record_freep) HostRecord *back = NULL;
        _cleanup_close_ int fd = -EBADF;
        HostRecord h = { .update_id = (char *) ID };

        ck_assert_int_eq(luv_host_record_write(&h, &fd), 0);
        ck_assert_int_eq(luv_host_record_read(fd, &back, NULL), 0);
        ck_assert_ptr_null(back->to_kernel);
        ck_assert_ptr_nonnull(back->units);
        ck_assert_ptr_null(back->units[0]);
        ck_assert_uint_eq(back->n_sessions, 0);
}
END_TEST

START_TEST(machine)
{
        _cleanup_(luv_machine_record_freep) MachineRecord *m = make_machine(), *back = NULL;
        _cleanup_(luv_host_record_freep) HostRecord *host_record = NULL;
        _cleanup_free_ char *reason = NULL;
        _cleanup_close_ int fd = write_machine(m);

        ck_assert_int_eq(luv_machine_record_read(fd, &back, &reason), 0);
        ck_assert_str_eq(back->name, "vm1");
        ck_assert_str_eq(back->secret, ID);
        ck_assert_str_eq(back->unit, m->unit);
        ck_assert_str_eq(back->vmm, m->vmm);
        ck_assert_uint_eq(back->uid, 1000);
        ck_assert_uint_eq(back->generation, 3);
        ck_assert_uint_eq(back->serial, 5);
        ck_assert_uint_eq(back->stopped_usec, 12345);
        ck_assert_uint_eq(back->n_fds, 4);
        ck_assert_uint_eq(back->fds[0].size, 1 << 28);
        ck_assert_int_eq(back->fds[1].outcome, FD_OUTCOME_REBUILT);
        ck_assert_str_eq(back->fds[2].device, "0000:00:04.0");
        ck_assert_uint_eq(back->fds[3].token, 5 << 16 | 4);
        ck_assert_str_eq(back->devices[0].plan, "{\"driver\":\"vfio-pci\"}");

        /* One is not the other. */
        ck_assert_int_eq(luv_host_record_read(fd, &host_record, &reason), -EBADMSG);
        ck_assert_str_eq(reason, "what should be the host record is a machine record");
}
END_TEST

/* A document is refused, with a sentence, and nothing comes out. */
static void refused(const uint8_t *data, size_t size, int error)
{
        _cleanup_close_ int fd = memfd_create("document", MFD_CLOEXEC);
        _cleanup_free_ char *reason = NULL;
        MachineRecord *m = NULL;

        ck_assert_int_eq(luv_write_all(fd, data, size), 0);
        ck_assert_int_eq(luv_machine_record_read(fd, &m, &reason), error);
        ck_assert_ptr_null(m);
        ck_assert_ptr_nonnull(reason);
        ck_assert_uint_gt(strlen(reason), 10);
}

static uint8_t *read_document(int fd, size_t *ret_size)
{
        struct stat st;
        uint8_t *data;

        ck_assert_int_eq(fstat(fd, &st), 0);
        data = malloc((size_t) st.st_size + 1);
        ck_assert_ptr_nonnull(data);
        ck_assert_int_eq(luv_pread_all(fd, data, (size_t) st.st_size, 0), 0);
        *ret_size = (size_t) st.st_size;
        return data;
}

START_TEST(every_byte)
{
        _cleanup_(luv_machine_record_freep) MachineRecord *m = make_machine();
        _cleanup_close_ int fd = write_machine(m);
        _cleanup_free_ uint8_t *data = NULL;
        size_t size;

        data = read_document(fd, &size);
        for (size_t i = 0; i < size; i++)
                for (unsigned bit = 0; bit < 8; bit++) {
                        _cleanup_close_ int damaged = memfd_create("document", MFD_CLOEXEC);
                        _cleanup_free_ char *reason = NULL;
                        MachineRecord *none = NULL;
                        int r;

                        data[i] ^= (uint8_t) (1u << bit);
                        ck_assert_int_eq(luv_write_all(damaged, data, size), 0);
                        r = luv_machine_record_read(damaged, &none, &reason);
                        ck_assert_msg(r == -EBADMSG || (r == -EPROTONOSUPPORT && (i == 10 || i == 11)),
                                      "bit %u of byte %zu: %i", bit, i, r);
                        ck_assert_ptr_null(none);
                        ck_assert_ptr_nonnull(reason);
                        data[i] ^= (uint8_t) (1u << bit);
                }
        for (size_t i = 0; i < size; i++)
                refused(data, i, -EBADMSG);
        data[size] = ' ';
        refused(data, size + 1, -EBADMSG);
}
END_TEST

static uint8_t *put_le(uint8_t *p, uint64_t v, size_t n)
{
        for (size_t i = 0; i < n; i++)
                *p++ = (uint8_t) (v >> 8 * i);
        return p;
}

/* A document whose sum is right, whatever is in it. */
static uint8_t *seal(unsigned version, unsigned min_reader, unsigned kind, uint64_t length, const char *json,
                     size_t json_size, size_t *ret_size)
{
        uint8_t *data = malloc(HEADER_SIZE + json_size), *p;

        ck_assert_ptr_nonnull(data);
        memcpy(data, "LUVFIODC", 8);
        p = put_le(data + 8, version, 2);
        p = put_le(p, min_reader, 2);
        p = put_le(p, kind, 4);
        p = put_le(p, length, 8);
        put_le(p, luv_crc32c_extend(luv_crc32c(data, HEADER_SIZE - 4), json, json_size), 4);
        memcpy(data + HEADER_SIZE, json, json_size);
        *ret_size = HEADER_SIZE + json_size;
        return data;
}

static void sealed_refused(unsigned version, unsigned min_reader, unsigned kind, uint64_t length,
                           const char *json, size_t json_size, int error)
{
        _cleanup_free_ uint8_t *data = NULL;
        size_t size;

        data = seal(version, min_reader, kind, length, json, json_size, &size);
        refused(data, size, error);
}

START_TEST(envelopes)
{
        _cleanup_(luv_machine_record_freep) MachineRecord *m = make_machine(), *back = NULL;
        _cleanup_close_ int fd = write_machine(m), newer = memfd_create("document", MFD_CLOEXEC);
        _cleanup_free_ uint8_t *data = NULL, *later = NULL;
        _cleanup_free_ char *deep = NULL, *big = NULL;
        const char *json;
        size_t size, n, later_size;
        int pair[2];

        data = read_document(fd, &size);
        json = (const char *) data + HEADER_SIZE;
        n = size - HEADER_SIZE;

        sealed_refused(2, 2, 2, n, json, n, -EPROTONOSUPPORT);
        sealed_refused(65535, 65535, 2, n, json, n, -EPROTONOSUPPORT);
        sealed_refused(1, 2, 2, n, json, n, -EPROTONOSUPPORT);
        sealed_refused(0, 0, 2, n, json, n, -EBADMSG);
        sealed_refused(1, 0, 2, n, json, n, -EBADMSG);
        sealed_refused(0, 1, 2, n, json, n, -EBADMSG);
        sealed_refused(1, 1, 1, n, json, n, -EBADMSG);
        sealed_refused(1, 1, 3, n, json, n, -EBADMSG);
        sealed_refused(1, 1, 2, n + 1, json, n, -EBADMSG);
        sealed_refused(1, 1, 2, n - 1, json, n, -EBADMSG);
        sealed_refused(1, 1, 2, UINT64_MAX, json, n, -EBADMSG);
        sealed_refused(1, 1, 2, UINT64_MAX - HEADER_SIZE + 1, json, n, -EBADMSG);
        sealed_refused(1, 1, 2, 0, "", 0, -EBADMSG);

        /* A later version that says it can be read is read. */
        later = seal(2, 1, 2, n, json, n, &later_size);
        ck_assert_int_eq(luv_write_all(newer, later, later_size), 0);
        ck_assert_int_eq(luv_machine_record_read(newer, &back, NULL), 0);

        deep = malloc(100000);
        memset(deep, '[', 50000);
        memset(deep + 50000, ']', 50000);
        sealed_refused(1, 1, 2, 100000, deep, 100000, -EBADMSG);
        big = malloc(16 * 1024 * 1024 + 1);
        memset(big, ' ', 16 * 1024 * 1024 + 1);
        sealed_refused(1, 1, 2, 16 * 1024 * 1024 + 1, big, 16 * 1024 * 1024 + 1, -EBADMSG);

        ck_assert_int_eq(pipe2(pair, 0), 0);
        ck_assert_int_eq(luv_machine_record_read(pair[0], &back, NULL), -EBADMSG);
        ck_assert_int_eq(luv_machine_record_read(-1, &back, NULL), -EBADF);
        (void) close(pair[0]);
        (void) close(pair[1]);
}
END_TEST

/* Replaces FROM by TO in a valid document, whose sum is made right: the reader has to see it by itself. */
static void changed_refused(const char *json, const char *from, const char *to)
{
        _cleanup_free_ char *changed = NULL;
        const char *at = strstr(json, from);
        _cleanup_free_ uint8_t *data = NULL;
        _cleanup_close_ int fd = memfd_create("document", MFD_CLOEXEC);
        _cleanup_free_ char *reason = NULL;
        MachineRecord *m = NULL;
        size_t size;
        int r;

        ck_assert_msg(at != NULL, "no %s in %s", from, json);
        changed = luv_strf("%.*s%s%s", (int) (at - json), json, to, at + strlen(from));
        data = seal(1, 1, 2, strlen(changed), changed, strlen(changed), &size);
        ck_assert_int_eq(luv_write_all(fd, data, size), 0);
        r = luv_machine_record_read(fd, &m, &reason);
        ck_assert_msg(r == -EBADMSG, "%s -> %s: %i", from, to, r);
        ck_assert_ptr_null(m);
        ck_assert_ptr_nonnull(reason);
}

START_TEST(every_field)
{
        static const char *const changes[][2] = {
                { "\"name\":\"vm1\"", "\"name\":\"-vm1\"" },
                { "\"name\":\"vm1\"", "\"name\":1" },
                { "\"name\":\"vm1\"", "\"nome\":\"vm1\"" },
                { "\"name\":\"vm1\"", "\"name\":null" },
                { "\"name\":\"vm1\"", "\"name\":\"vm1\\u0000\"" },
                { ID, "0123" },
                { "\"unit\":\"vm@1.service\"", "\"unit\":\"\"" },
                { "\"unit\":\"vm@1.service\"", "\"unit\":\"a\\nb\"" },
                { "\"unit\":\"vm@1.service\"", "\"unit\":[]" },
                { "\"luvfio-vm1-1\"", "\"other-vm1-1\"" },
                { "\"luvfio-vm1-1\"", "\"luvfio-host\"" },
                { "\"luvfio-vm1-1\"",
                  "\"luvfio-01234567890123456789012345678901234567890123456789012345678901234567890\"" },
                { "\"uid\":1000", "\"uid\":4294967295" },
                { "\"uid\":1000", "\"uid\":-1" },
                { "\"uid\":1000", "\"uid\":\"1000\"" },
                { "\"generation\":3", "\"generation\":3.0" },
                { "\"serial\":5", "\"serial\":0" },
                { "\"serial\":5", "\"serial\":6" },
                { "\"serial\":5", "\"serial\":140737488355328" },
                { "\"stopped_usec\":12345", "\"stopped_usec\":true" },
                { "\"fds\":[", "\"fds\":[1," },
                { "\"fds\":[", "\"fds\":[{}," },
                { "\"fds\":", "\"fds\":null,\"x\":" },
                { "\"name\":\"ram\"", "\"name\":\"\"" },
                { "\"name\":\"ram\"", "\"name\":\"state\"" },
                { "\"kind\":\"memfd\"", "\"kind\":\"tape\"" },
                { "\"kind\":\"memfd\"", "\"kind\":\"vfio\"" },
                { "\"outcome\":\"preserved\"", "\"outcome\":\"lost\"" },
                { "\"token\":327681", "\"token\":0" },
                { "\"token\":327681", "\"token\":327680" },
                { "\"token\":327681", "\"token\":393216" },
                { "\"token\":327681", "\"token\":327684" },
                { "\"size\":268435456", "\"size\":\"x\"" },
                { "\"device\":\"0000:00:04.0\"", "\"device\":\"0000:00:05.0\"" },
                { "\"device\":\"0000:00:04.0\"", "\"device\":\"x\"" },
                { "\"device\":\"0000:00:04.0\"", "\"device\":null" },
                { "\"address\":\"0000:00:04.0\"", "\"address\":\"0000:00:05.0\"" },
                { "\"address\":\"0000:00:04.0\"", "\"address\":\"/\"" },
                { "\"plugin\":\"vfio-pci\"", "\"plugin\":\"../x\"" },
                { "\"promise\":\"reset\"", "\"promise\":\"\"" },
                { "\"plan\":", "\"plans\":" },
                { "\"devices\":[",
                  "\"devices\":[{\"address\":\"0000:00:04.0\",\"plugin\":\"a\",\"promise\":\"b\","
                  "\"plan\":\"\"}," },
        };
        _cleanup_(luv_machine_record_freep) MachineRecord *m = make_machine();
        _cleanup_close_ int fd = write_machine(m);
        _cleanup_free_ uint8_t *data = NULL;
        size_t size;

        data = read_document(fd, &size);
        data[size] = 0;
        for (size_t i = 0; i < ELEMENTSOF(changes); i++)
                changed_refused((const char *) data + HEADER_SIZE, changes[i][0], changes[i][1]);
        changed_refused((const char *) data + HEADER_SIZE, (const char *) data + HEADER_SIZE, "[]");
        changed_refused((const char *) data + HEADER_SIZE, (const char *) data + HEADER_SIZE, "null");
}
END_TEST

/* What could not be read later is not written. */
START_TEST(writing)
{
        _cleanup_(luv_machine_record_freep) MachineRecord *m = make_machine();
        _cleanup_(luv_host_record_freep) HostRecord *h = make_host();
        int fd = -EBADF;

        m->serial = 6;
        ck_assert_int_eq(luv_machine_record_write(m, &fd), -EINVAL);
        ck_assert_int_eq(fd, -EBADF);

        free(h->sessions[1].machine);
        h->sessions[1].machine = strdup("vm1");
        ck_assert_int_eq(luv_host_record_write(h, &fd), -EINVAL);
        ck_assert_int_eq(fd, -EBADF);
}
END_TEST

START_TEST(large)
{
        HostRecord h = { .update_id = (char *) ID };
        _cleanup_(luv_host_record_freep) HostRecord *back = NULL;
        _cleanup_free_ SessionRecord *sessions = calloc(20000, sizeof(SessionRecord));
        _cleanup_close_ int fd = -EBADF;

        h.sessions = sessions;
        h.n_sessions = 20000;
        for (size_t i = 0; i < h.n_sessions; i++)
                sessions[i] = (SessionRecord) { luv_strf("vm%zu", i), luv_strf("luvfio-vm%zu-1", i), i + 1 };
        ck_assert_int_eq(luv_host_record_write(&h, &fd), 0);
        ck_assert_int_eq(luv_host_record_read(fd, &back, NULL), 0);
        ck_assert_uint_eq(back->n_sessions, 20000);
        for (size_t i = 0; i < h.n_sessions; i++) {
                free(sessions[i].machine);
                free(sessions[i].session);
        }
}
END_TEST

int main(void)
{
        Suite *suite = suite_create("manifest");
        TCase *c = tcase_create("manifest");
        SRunner *runner;
        int failed;

        tcase_set_timeout(c, 60);
        tcase_add_test(c, host);
        tcase_add_test(c, empty);
        tcase_add_test(c, machine);
        tcase_add_test(c, every_byte);
        tcase_add_test(c, envelopes);
        tcase_add_test(c, every_field);
        tcase_add_test(c, writing);
        tcase_add_test(c, large);
        suite_add_tcase(suite, c);
        runner = srunner_create(suite);
        srunner_set_tap(runner, "-");
        srunner_run_all(runner, CK_SILENT);
        failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
