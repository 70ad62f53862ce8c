/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <check.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/wait.h>

#include "machine/machine.h"
#include "machine/peer.h"
#include "util/string-util.h"

static MachineRegistry *registry(const MachineQuota *quota)
{
        MachineRegistry *r;

        ck_assert_int_eq(luv_machine_registry_new(NULL, NULL, quota, NULL, NULL, &r), 0);
        return r;
}

static MachineOwner owner(uid_t uid, const char *unit)
{
        MachineOwner o = { .uid = uid, .pid = getpid(), .pidfd = pidfd_open(getpid(), 0) };

        ck_assert_int_eq(luv_free_and_strdup(&o.unit, unit), 0);
        return o;
}

static Machine *machine(MachineRegistry *r, const char *name, uid_t uid, const char *unit)
{
        MachineOwner o = owner(uid, unit);
        Machine *m;

        ck_assert_int_eq(luv_machine_new(r, name, &o, MACHINE_RUNNING, &m), 0);
        return m;
}

static MachineFd *hold(Machine *m, const char *name, FdKind kind, uint64_t ino, uint64_t size,
                       const char *device)
{
        FdIdentity i = {
                .kind = kind == FD_KIND_STATE ? FD_KIND_MEMFD : kind, .dev = 1, .ino = ino, .size = size
        };
        MachineFd *f, *other = NULL;
        const char *what = NULL;
        uint64_t limit = 0;
        int fd = memfd_create("x", MFD_CLOEXEC);

        if (device)
                (void) snprintf(i.device, sizeof(i.device), "%s", device);
        ck_assert_int_eq(luv_machine_hold(m, name, kind, FD_OUTCOME_PRESERVED, &i, &fd, &f, &other, &what,
                                          &limit),
                         0);
        ck_assert_int_lt(fd, 0);
        return f;
}

/* Refused: the error, and the fd is still ours. */
static int refused(Machine *m, const char *name, FdKind kind, uint64_t ino, uint64_t size,
                   const char *device, MachineFd **ret_other, const char **ret_what)
{
        FdIdentity i = { .kind = kind, .dev = 1, .ino = ino, .size = size };
        uint64_t limit = 0;
        MachineFd *f;
        int fd = memfd_create("x", MFD_CLOEXEC), r;

        if (device)
                (void) snprintf(i.device, sizeof(i.device), "%s", device);
        r = luv_machine_hold(m, name, kind, FD_OUTCOME_PRESERVED, &i, &fd, &f, ret_other, ret_what, &limit);
        ck_assert_int_lt(r, 0);
        ck_assert_int_ge(fd, 0);
        close(fd);
        return r;
}

START_TEST(names_are_unique_and_sorted)
{
        static const char *const sorted[] = { "a", "b", "c" };
        MachineRegistry *r = registry(NULL);
        MachineOwner o = owner(1, "u.service");
        Machine *m;

        machine(r, "b", 0, NULL);
        machine(r, "a", 0, NULL);
        machine(r, "c", 0, NULL);
        ck_assert_int_eq(luv_machine_new(r, "b", &o, MACHINE_RUNNING, &m), -EEXIST);
        luv_machine_owner_done(&o);
        ck_assert_uint_eq(luv_machine_registry_size(r), 3);
        for (size_t i = 0; i < 3; i++)
                ck_assert_str_eq(luv_machine_registry_at(r, i)->name, sorted[i]);
        luv_machine_forget(luv_machine_registry_find(r, "b"));
        ck_assert_ptr_null(luv_machine_registry_find(r, "b"));
        ck_assert_ptr_nonnull(luv_machine_registry_find(r, "c"));
        luv_machine_registry_free(r);
}
END_TEST

START_TEST(ownership)
{
        MachineRegistry *r = registry(NULL);
        Machine *m = machine(r, "vm", 1000, "vm@1.service"), *loose = machine(r, "loose", 1000, NULL);
        char *secret = strdup(m->secret);
        const struct {
                uid_t uid;
                const char *unit;
                bool owns, owns_loose, owns_loose_simulated;
        } cases[] = {
                { 0, NULL, true, true, true },
                { 1000, "vm@1.service", true, false, false },
                { 1000, "vm@2.service", false, false, false },
                { 1001, "vm@1.service", false, false, false },
                { 1000, NULL, false, false, true },
                { 1001, NULL, false, false, false },
        };

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                MachineOwner peer = owner(cases[i].uid, cases[i].unit);

                ck_assert_int_eq(luv_machine_is_owner(m, &peer, false), cases[i].owns);
                ck_assert_int_eq(luv_machine_is_owner(loose, &peer, false), cases[i].owns_loose);
                ck_assert_int_eq(luv_machine_is_owner(loose, &peer, true), cases[i].owns_loose_simulated);
                luv_machine_owner_done(&peer);
        }

        ck_assert_uint_eq(strlen(secret), 32);
        ck_assert(luv_machine_is_secret(m, secret));
        ck_assert(!luv_machine_is_secret(loose, secret));
        ck_assert(!luv_machine_is_secret(m, NULL));
        ck_assert(!luv_machine_is_secret(m, ""));
        secret[31] ^= 1;
        ck_assert(!luv_machine_is_secret(m, secret));
        free(secret);
        luv_machine_registry_free(r);
}
END_TEST

START_TEST(one_file_once)
{
        MachineRegistry *r = registry(NULL);
        Machine *a = machine(r, "a", 0, NULL), *b = machine(r, "b", 0, NULL);
        MachineFd *ram = hold(a, "ram", FD_KIND_MEMFD, 7, 4096, NULL), *other = NULL, *device, *iommu;
        const char *what;
        uint64_t limit;
        int fd;

        ck_assert_int_eq(refused(a, "again", FD_KIND_MEMFD, 7, 4096, NULL, &other, &what), -EEXIST);
        ck_assert_ptr_eq(other, ram);
        ck_assert_int_eq(refused(b, "stolen", FD_KIND_MEMFD, 7, 4096, NULL, &other, &what), -EEXIST);
        ck_assert_ptr_eq(other, ram);
        /* Another kind has numbers of its own. */
        iommu = hold(b, "iommu", FD_KIND_IOMMUFD, 7, 0, NULL);
        /* All iommufds have one inode: another open is another, a duplicate is not. */
        hold(a, "iommu", FD_KIND_IOMMUFD, 7, 0, NULL);
        fd = dup(iommu->fd);
        ck_assert_int_eq(luv_machine_hold(a, "dup", FD_KIND_IOMMUFD, FD_OUTCOME_REBUILT, &iommu->identity,
                                          &fd, &device, &other, &what, &limit),
                         -EEXIST);
        ck_assert_ptr_eq(other, iommu);
        close(fd);
        /* A device is the same however often it is opened. */
        device = hold(a, "dev", FD_KIND_VFIO, 8, 0, "0000:00:04.0");
        ck_assert_int_eq(refused(b, "dev", FD_KIND_VFIO, 9, 0, "0000:00:04.0", &other, &what), -EEXIST);
        ck_assert_ptr_eq(other, device);
        ck_assert_uint_eq(a->n_devices, 1);
        ck_assert_uint_eq(b->n_devices, 0);
        /* Given up by one, it may be the other's. */
        luv_machine_drop_fd(a, device);
        ck_assert_uint_eq(a->n_devices, 0);
        hold(b, "dev", FD_KIND_VFIO, 9, 0, "0000:00:04.0");
        luv_machine_forget(a);
        hold(b, "ram", FD_KIND_MEMFD, 7, 4096, NULL);
        luv_machine_registry_free(r);
}
END_TEST

START_TEST(a_known_name_replaces)
{
        MachineRegistry *r = registry(NULL);
        Machine *m = machine(r, "a", 0, NULL);
        MachineFd *f = hold(m, "ram", FD_KIND_MEMFD, 7, 4096, NULL), *other = NULL;
        uint64_t token = f->token;
        const char *what;

        f = hold(m, "ram", FD_KIND_MEMFD, 8, 8192, NULL);
        ck_assert_uint_eq(m->n_fds, 1);
        ck_assert_uint_eq(f->token, token);
        ck_assert_uint_eq(luv_machine_memory(m), 8192);
        /* Not once a session has it; the same file is welcome. */
        f->preserved = true;
        ck_assert_int_eq(refused(m, "ram", FD_KIND_MEMFD, 9, 4096, NULL, &other, &what), -EBUSY);
        ck_assert_ptr_eq(hold(m, "ram", FD_KIND_MEMFD, 8, 8192, NULL), f);
        /* A device that is opened anew keeps what is known of it. */
        hold(m, "dev", FD_KIND_VFIO, 10, 0, "0000:00:04.0");
        ck_assert_int_eq(luv_free_and_strdup(&m->devices[0].plugin, "null"), 0);
        hold(m, "dev", FD_KIND_VFIO, 11, 0, "0000:00:04.0");
        ck_assert_uint_eq(m->n_devices, 1);
        ck_assert_str_eq(m->devices[0].plugin, "null");
        hold(m, "dev", FD_KIND_VFIO, 12, 0, "0000:00:05.0");
        ck_assert_uint_eq(m->n_devices, 1);
        ck_assert_str_eq(m->devices[0].address, "0000:00:05.0");
        luv_machine_registry_free(r);
}
END_TEST

START_TEST(order_and_tokens)
{
        static const char *const order[] = { "ram0", "ram1", "iommu", "dev", "state" };
        MachineRegistry *r = registry(NULL);
        Machine *a = machine(r, "a", 0, NULL), *b = machine(r, "b", 0, NULL);
        MachineFd *gone;

        hold(a, "state", FD_KIND_STATE, 1, 1, NULL);
        hold(a, "dev", FD_KIND_VFIO, 2, 0, "0000:00:04.0");
        hold(a, "iommu", FD_KIND_IOMMUFD, 3, 0, NULL);
        gone = hold(a, "ram0", FD_KIND_MEMFD, 4, 1, NULL);
        hold(a, "ram1", FD_KIND_MEMFD, 5, 1, NULL);
        for (size_t i = 0; i < 5; i++)
                ck_assert_str_eq(a->fds[i]->name, order[i]);
        ck_assert_uint_ne(a->serial, b->serial);
        for (size_t i = 0; i < 5; i++) {
                ck_assert_uint_eq(a->fds[i]->token >> 16, a->serial);
                ck_assert_uint_ne(a->fds[i]->token & 0xffff, 0);
                for (size_t k = 0; k < i; k++)
                        ck_assert_uint_ne(a->fds[i]->token, a->fds[k]->token);
        }
        luv_machine_drop_fd(a, gone);
        hold(a, "ram2", FD_KIND_MEMFD, 6, 1, NULL);
        for (size_t i = 0; i < 5; i++)
                for (size_t k = 0; k < i; k++)
                        ck_assert_uint_ne(a->fds[i]->token, a->fds[k]->token);
        luv_machine_registry_free(r);
}
END_TEST

START_TEST(quotas)
{
        MachineQuota q = { .machines = 2, .fds = 3, .bytes = 10000 };
        MachineRegistry *r = registry(&q);
        Machine *a = machine(r, "a", 1, "x.service"), *b = machine(r, "b", 1, "x.service"), *c;
        MachineOwner o = owner(1, NULL);
        MachineFd *other = NULL;
        const char *what = NULL;

        ck_assert_int_eq(luv_machine_new(r, "c", &o, MACHINE_RUNNING, &c), -EDQUOT);
        luv_machine_owner_done(&o);
        machine(r, "others", 2, NULL);

        hold(a, "1", FD_KIND_MEMFD, 1, 9000, NULL);
        ck_assert_int_eq(refused(b, "2", FD_KIND_MEMFD, 2, 1001, NULL, &other, &what), -EDQUOT);
        ck_assert_str_eq(what, "bytes");
        hold(b, "2", FD_KIND_MEMFD, 2, 1000, NULL);
        hold(b, "3", FD_KIND_IOMMUFD, 3, 0, NULL);
        ck_assert_int_eq(refused(b, "4", FD_KIND_IOMMUFD, 4, 0, NULL, &other, &what), -EDQUOT);
        ck_assert_str_eq(what, "fds");
        /* Replacing costs the difference. */
        hold(a, "1", FD_KIND_MEMFD, 5, 8999, NULL);
        hold(a, "1", FD_KIND_MEMFD, 6, 9000, NULL);
        /* What is given back can be had again, again and again. */
        for (int i = 0; i < 5; i++) {
                luv_machine_forget(a);
                a = machine(r, "a", 1, "x.service");
                hold(a, "1", FD_KIND_MEMFD, 7, 9000, NULL);
                luv_machine_drop_fd(a, luv_machine_find_fd(a, "1"));
                hold(a, "1", FD_KIND_MEMFD, 7, 9000, NULL);
        }
        ck_assert_int_eq(refused(a, "5", FD_KIND_IOMMUFD, 4, 0, NULL, &other, &what), -EDQUOT);
        luv_machine_registry_free(r);
}
END_TEST

START_TEST(from_a_record)
{
        FdRecord fds[] = {
                { (char *) "ram", FD_KIND_MEMFD, FD_OUTCOME_PRESERVED, LUVFIO_MACHINE_TOKEN(7) | 1, 4096,
                  NULL },
                { (char *) "dev", FD_KIND_VFIO, FD_OUTCOME_RESET, LUVFIO_MACHINE_TOKEN(7) | 2, 0,
                  (char *) "0000:00:04.0" },
        };
        DeviceRecord devices[] = { { (char *) "0000:00:04.0", (char *) "null", (char *) "reset",
                                     (char *) "plan" } };
        MachineRecord record = {
                .name = (char *) "vm",
                .secret = (char *) "0123456789abcdef0123456789abcdef",
                .unit = (char *) "vm.service",
                .session = (char *) "luvfio-vm-3",
                .uid = 1000,
                .generation = 2,
                .serial = 7,
                .stopped_usec = 99,
                .fds = fds,
                .n_fds = 2,
                .devices = devices,
                .n_devices = 1,
        };
        MachineOwner nobody = { .uid = (uid_t) -1, .pidfd = -EBADF }, peer = owner(1000, "vm.service");
        MachineRegistry *r = registry(NULL);
        FdIdentity identity = { .kind = FD_KIND_MEMFD, .dev = 1, .ino = 2, .size = 8192 };
        Machine *m, *later;

        ck_assert_int_eq(luv_machine_new(r, "vm", &nobody, MACHINE_RESTORING, &m), 0);
        ck_assert(!luv_machine_is_alive(m));
        ck_assert_int_eq(luv_machine_set_record(m, &record), 0);
        ck_assert(luv_machine_is_owner(m, &peer, false));
        ck_assert(luv_machine_is_secret(m, record.secret));
        ck_assert_uint_eq(m->generation, 3);
        ck_assert_uint_eq(m->n_fds, 2);
        ck_assert_uint_eq(m->n_devices, 1);
        ck_assert_str_eq(m->devices[0].plan, "plan");
        ck_assert_str_eq(m->session_name, "luvfio-vm-3");
        /* Tokens of new machines stay clear of those that came along. */
        later = machine(r, "later", 0, NULL);
        ck_assert_uint_gt(later->serial, 7);
        luv_machine_set_retrieved(m, m->fds[0], &identity, memfd_create("x", MFD_CLOEXEC));
        ck_assert_ptr_eq(luv_machine_registry_find_file(r, &identity, m->fds[0]->fd), m->fds[0]);
        ck_assert_uint_eq(luv_machine_memory(m), 8192);
        luv_machine_owner_done(&peer);
        luv_machine_registry_free(r);
}
END_TEST

START_TEST(notes)
{
        char folder[] = "/tmp/luvfiod-test-XXXXXX";
        MachineRegistry *r;
        MachineOwner o;
        char *secret, *command;
        Machine *m;
        pid_t child;

        ck_assert_ptr_nonnull(mkdtemp(folder));
        ck_assert_int_eq(luv_machine_registry_new(NULL, folder, NULL, NULL, NULL, &r), 0);
        m = machine(r, "lives", 1000, "vm.service");
        m->generation = 4;
        hold(m, "ram", FD_KIND_MEMFD, 1, 4096, NULL);
        hold(m, "dev", FD_KIND_VFIO, 2, 0, "0000:00:04.0");
        hold(m, "state", FD_KIND_STATE, 3, 4096, NULL);
        secret = strdup(m->secret);
        ck_assert_int_eq(luv_machine_note(m), 0);
        child = fork();
        if (child == 0) {
                pause();
                _exit(0);
        }
        o = (MachineOwner) { .uid = 1000, .pid = child, .pidfd = pidfd_open(child, 0) };
        ck_assert_int_eq(luv_machine_new(r, "dies", &o, MACHINE_RUNNING, &m), 0);
        ck_assert_int_eq(luv_machine_note(m), 0);
        ck_assert_int_eq(luv_machine_note(machine(r, "leaves", 1000, NULL)), 0);
        luv_machine_forget(luv_machine_registry_find(r, "leaves"));
        luv_machine_registry_free(r);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);

        ck_assert_int_eq(luv_machine_registry_new(NULL, folder, NULL, NULL, NULL, &r), 0);
        ck_assert_int_eq(luv_machine_registry_load(r), 0);
        ck_assert_uint_eq(luv_machine_registry_size(r), 1);
        m = luv_machine_registry_find(r, "lives");
        ck_assert_ptr_nonnull(m);
        ck_assert_str_eq(m->secret, secret);
        ck_assert_str_eq(m->owner.unit, "vm.service");
        ck_assert_uint_eq(m->generation, 4);
        ck_assert(luv_machine_is_alive(m));
        /* What it held has to come again, but for its state. */
        ck_assert_uint_eq(luv_strv_length(m->missing), 2);
        hold(m, "dev", FD_KIND_VFIO, 2, 0, "0000:00:04.0");
        ck_assert_uint_eq(luv_strv_length(m->missing), 1);
        ck_assert_str_eq(m->missing[0], "ram");
        hold(m, "new", FD_KIND_MEMFD, 4, 4096, NULL);
        hold(m, "ram", FD_KIND_MEMFD, 1, 4096, NULL);
        ck_assert_uint_eq(luv_strv_length(m->missing), 0);
        free(secret);
        luv_machine_registry_clear_notes(r);
        luv_machine_registry_free(r);
        ck_assert_int_eq(luv_machine_registry_new(NULL, folder, NULL, NULL, NULL, &r), 0);
        ck_assert_int_eq(luv_machine_registry_load(r), 0);
        ck_assert_uint_eq(luv_machine_registry_size(r), 0);
        luv_machine_registry_free(r);
        command = luv_strf("rm -r %s", folder);
        ck_assert_int_eq(system(command), 0);
        free(command);
}
END_TEST

START_TEST(peers)
{
        uint64_t start;
        MachineOwner o;
        int fd;

        ck_assert_int_eq(luv_peer_identify(getuid(), getpid(), -EBADF, &o), 0);
        ck_assert(luv_pidfd_is_alive(o.pidfd));
        luv_machine_owner_done(&o);
        ck_assert_int_eq(luv_process_start_time(getpid(), &start), 0);
        fd = luv_process_open(getpid(), start);
        ck_assert_int_ge(fd, 0);
        close(fd);
        /* A pid that was used again is another process. */
        ck_assert_int_eq(luv_process_open(getpid(), start + 1), -ESRCH);
        ck_assert_int_eq(luv_process_open(0, start), -ESRCH);
        ck_assert(!luv_pidfd_is_alive(-EBADF));
}
END_TEST

START_TEST(names_of_enums)
{
        for (MachineState s = 0; s < _MACHINE_STATE_MAX; s++)
                ck_assert_int_eq(luv_machine_state_from_string(luv_machine_state_to_string(s)), s);
        for (MachineEvent e = 0; e < _MACHINE_EVENT_MAX; e++)
                ck_assert_int_eq(luv_machine_event_from_string(luv_machine_event_to_string(e)), e);
        ck_assert_ptr_null(luv_machine_state_to_string(_MACHINE_STATE_INVALID));
        ck_assert_ptr_null(luv_machine_event_to_string(_MACHINE_EVENT_MAX));
}
END_TEST

int main(void)
{
        Suite *s = suite_create("machine");
        TCase *c = tcase_create("machine");
        SRunner *r;

        tcase_add_test(c, names_are_unique_and_sorted);
        tcase_add_test(c, ownership);
        tcase_add_test(c, one_file_once);
        tcase_add_test(c, a_known_name_replaces);
        tcase_add_test(c, order_and_tokens);
        tcase_add_test(c, quotas);
        tcase_add_test(c, from_a_record);
        tcase_add_test(c, notes);
        tcase_add_test(c, peers);
        tcase_add_test(c, names_of_enums);
        suite_add_tcase(s, c);
        r = srunner_create(s);
        srunner_set_tap(r, "-");
        srunner_run_all(r, CK_SILENT);
        srunner_free(r);
        return 0;
}
