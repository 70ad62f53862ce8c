/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <check.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "luo/fd-identify.h"
#include "util/string-util.h"

static int named_memfd(const char *name)
{
        int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

        ck_assert_int_ge(fd, 0);
        return fd;
}

START_TEST(names)
{
        for (FdKind k = 0; k < _FD_KIND_MAX; k++)
                ck_assert_int_eq(luv_fd_kind_from_string(luv_fd_kind_to_string(k)), k);
        for (FdOutcome o = 0; o < _FD_OUTCOME_MAX; o++)
                ck_assert_int_eq(luv_fd_outcome_from_string(luv_fd_outcome_to_string(o)), o);
        ck_assert_int_eq(luv_fd_kind_from_string("tape"), _FD_KIND_INVALID);
        ck_assert_int_eq(luv_fd_kind_from_string(NULL), _FD_KIND_INVALID);
        ck_assert_ptr_null(luv_fd_kind_to_string(_FD_KIND_MAX));
        ck_assert_ptr_null(luv_fd_outcome_to_string(_FD_OUTCOME_INVALID));
}
END_TEST

START_TEST(memfds)
{
        _cleanup_close_ int fd = named_memfd("ram"), copy = fcntl(fd, F_DUPFD_CLOEXEC, 3),
                            other = named_memfd("ram");
        FdIdentity a, b, c;

        ck_assert_int_eq(ftruncate(fd, 1 << 20), 0);
        ck_assert_int_eq(pwrite(fd, "x", 1, 70000), 1);
        ck_assert_int_eq(luv_fd_identify(fd, false, &a, NULL), 0);
        ck_assert_int_eq(luv_fd_identify(copy, true, &b, NULL), 0);
        ck_assert_int_eq(luv_fd_identify(other, true, &c, NULL), 0);
        ck_assert_int_eq(a.kind, FD_KIND_MEMFD);
        ck_assert_int_eq(b.kind, FD_KIND_MEMFD);
        ck_assert_uint_eq(a.size, 1 << 20);
        ck_assert_uint_gt(a.allocated, 0);
        ck_assert_uint_lt(a.allocated, 1 << 20);
        ck_assert_str_eq(a.device, "");
        ck_assert(a.dev == b.dev && a.ino == b.ino);
        ck_assert(a.dev == c.dev && a.ino != c.ino);
        ck_assert_int_eq(luv_fd_same(fd, copy), 1);
        ck_assert_int_eq(luv_fd_same(fd, fd), 1);
        ck_assert_int_eq(luv_fd_same(fd, other), 0);
        ck_assert_int_eq(luv_fd_same(fd, -1), -EBADF);
        ck_assert_int_eq(luv_fd_same(-1, fd), -EBADF);
        ck_assert_int_eq(luv_fd_same(-1, -1), -EBADF);
}
END_TEST

START_TEST(preserved)
{
        _cleanup_close_ int running = named_memfd("luvfio-sim:vfio:0000:00:04.0+running"),
                            reset = named_memfd("luvfio-sim:vfio:0000:00:05.0"),
                            whole = named_memfd("luvfio-sim:vfio:0000:00:06.0+preserved"),
                            iommufd = named_memfd("luvfio-sim:iommufd+preserved"),
                            rebuilt = named_memfd("luvfio-sim:iommufd");
        _cleanup_strv_ char **kept = NULL, **lost = NULL, **unknown = NULL;
        _cleanup_free_ char *list = NULL, *nothing = NULL, *blocker = NULL;
        FdIdentity i;

        ck_assert_int_eq(luv_fd_identify(running, true, &i, NULL), 0);
        ck_assert_str_eq(i.device, "0000:00:04.0");
        ck_assert_uint_eq(luv_fd_preserved(running), 7);
        ck_assert(luv_fd_preserved(reset) == FD_PRESERVED_UNKNOWN);
        ck_assert(luv_fd_preserved(-EBADF) == FD_PRESERVED_UNKNOWN);
        ck_assert_int_eq(luv_fd_outcome(FD_KIND_VFIO, running), FD_OUTCOME_RUNNING);
        ck_assert_int_eq(luv_fd_outcome(FD_KIND_VFIO, reset), FD_OUTCOME_RESET);
        ck_assert_int_eq(luv_fd_outcome(FD_KIND_MEMFD, reset), FD_OUTCOME_PRESERVED);
        ck_assert_int_eq(luv_fd_outcome(FD_KIND_STATE, reset), FD_OUTCOME_PRESERVED);
        ck_assert_int_eq(luv_fd_outcome(FD_KIND_IOMMUFD, -EBADF), FD_OUTCOME_REBUILT);
        ck_assert_int_eq(luv_fd_outcome(FD_KIND_IOMMUFD, rebuilt), FD_OUTCOME_REBUILT);
        ck_assert_int_eq(luv_fd_outcome(FD_KIND_IOMMUFD, iommufd), FD_OUTCOME_PRESERVED);
        ck_assert_int_eq(luv_iommufd_blocker(iommufd, &blocker), -ENOENT);
        ck_assert_int_eq(luv_fd_identify(iommufd, true, &i, NULL), 0);
        ck_assert_int_eq(i.kind, FD_KIND_IOMMUFD);
        ck_assert_int_eq(luv_fd_identify(whole, true, &i, NULL), 0);
        ck_assert_str_eq(i.device, "0000:00:06.0");
        ck_assert_uint_eq(luv_fd_preserved(whole), 15);
        ck_assert_int_eq(luv_fd_outcome(FD_KIND_VFIO, whole), FD_OUTCOME_PRESERVED);

        ck_assert(luv_fd_preserved_running(7) && luv_fd_preserved_running(6 | UINT64_C(1) << 40));
        ck_assert(!luv_fd_preserved_running(3) && !luv_fd_preserved_running(5));
        ck_assert(!luv_fd_preserved_running(FD_PRESERVED_UNKNOWN));
        ck_assert_int_eq(luv_fd_preserved_to_strv(5, true, &kept), 0);
        ck_assert_int_eq(luv_fd_preserved_to_strv(5, false, &lost), 0);
        ck_assert_int_eq(luv_fd_preserved_to_strv(FD_PRESERVED_UNKNOWN, false, &unknown), 0);
        ck_assert_uint_eq(luv_strv_length(kept), 2);
        ck_assert_uint_eq(luv_strv_length(lost), 4);
        ck_assert_uint_eq(luv_strv_length(unknown), 0);
        list = luv_fd_preserved_list(5, true);
        ck_assert_str_eq(list, "owner, dma");
        nothing = luv_fd_preserved_list(0, true);
        ck_assert_str_eq(nothing, "nothing");
}
END_TEST

START_TEST(stand_ins)
{
        _cleanup_close_ int iommufd = named_memfd("luvfio-sim:iommufd"),
                            vfio = named_memfd("luvfio-sim:vfio:0000:00:04.0"),
                            wrong = named_memfd("luvfio-sim:vfio:nonsense"),
                            unknown = named_memfd("luvfio-sim:x");
        _cleanup_free_ char *first = NULL, *second = NULL;
        FdIdentity i;

        ck_assert_int_eq(luv_fd_identify(iommufd, true, &i, NULL), 0);
        ck_assert_int_eq(i.kind, FD_KIND_IOMMUFD);
        ck_assert_int_eq(luv_fd_identify(vfio, true, &i, NULL), 0);
        ck_assert_int_eq(i.kind, FD_KIND_VFIO);
        ck_assert_str_eq(i.device, "0000:00:04.0");
        ck_assert_int_eq(luv_fd_identify(wrong, true, &i, &first), -EOPNOTSUPP);
        ck_assert_str_eq(first, "is a VFIO device that is no PCI device (nonsense)");
        ck_assert_int_eq(luv_fd_identify(unknown, true, &i, &second), -EOPNOTSUPP);
        ck_assert_str_eq(second, "is a memfd named luvfio-sim:x, which stands for nothing");
        /* Nobody is fooled by names otherwise. */
        ck_assert_int_eq(luv_fd_identify(vfio, false, &i, NULL), 0);
        ck_assert_int_eq(i.kind, FD_KIND_MEMFD);
}
END_TEST

static void refused(int fd, int error, const char *part)
{
        _cleanup_free_ char *reason = NULL;
        FdIdentity i;

        ck_assert_int_ge(fd, -1);
        ck_assert_int_eq(luv_fd_identify(fd, true, &i, &reason), error);
        ck_assert_ptr_nonnull(reason);
        ck_assert_msg(strstr(reason, part) != NULL, "\"%s\" is not in \"%s\"", part, reason);
        if (fd >= 0)
                (void) close(fd);
}

START_TEST(others)
{
        char path[] = "/dev/shm/test-fd-identify.XXXXXX";
        int pair[2], fd;
        FdIdentity i;

        refused(-1, -EBADF, "no open file descriptor");
        refused(eventfd(0, EFD_CLOEXEC), -EOPNOTSUPP, "eventfd");
        refused(open("/proc/self", O_RDONLY | O_CLOEXEC), -EOPNOTSUPP, "a folder");
        refused(open("/proc/version", O_RDONLY | O_CLOEXEC), -EOPNOTSUPP, "a file on a disk or the like");
        refused(open("/dev/null", O_RDONLY | O_CLOEXEC), -EOPNOTSUPP, "the character device null");
        refused(open("/dev/null", O_PATH | O_CLOEXEC), -EOPNOTSUPP, "a mere path");
        ck_assert_int_eq(pipe2(pair, O_CLOEXEC), 0);
        refused(pair[0], -EOPNOTSUPP, "a pipe");
        refused(pair[1], -EOPNOTSUPP, "a pipe");
        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        refused(pair[0], -EOPNOTSUPP, "a socket");
        refused(pair[1], -EOPNOTSUPP, "a socket");
        fd = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB);
        if (fd >= 0)
                refused(fd, -EOPNOTSUPP, "huge pages");

        /* A file of a tmpfs is as good as a memfd once it has no name. */
        fd = mkostemp(path, O_CLOEXEC);
        if (fd >= 0) {
                refused(fcntl(fd, F_DUPFD_CLOEXEC, 3), -EOPNOTSUPP, "a file with a name in a tmpfs");
                ck_assert_int_eq(unlink(path), 0);
                ck_assert_int_eq(luv_fd_identify(fd, false, &i, NULL), 0);
                ck_assert_int_eq(i.kind, FD_KIND_MEMFD);
                (void) close(fd);
        }
}
END_TEST

/* Where there is the real thing (the test host): two opens of it look the same, and are not. */
START_TEST(real_iommufd)
{
        _cleanup_close_ int a = open("/dev/iommu", O_RDWR | O_CLOEXEC),
                            b = open("/dev/iommu", O_RDWR | O_CLOEXEC);
        FdIdentity i, j;

        if (a < 0 || b < 0)
                return;
        ck_assert_int_eq(luv_fd_identify(a, false, &i, NULL), 0);
        ck_assert_int_eq(luv_fd_identify(b, false, &j, NULL), 0);
        ck_assert_int_eq(i.kind, FD_KIND_IOMMUFD);
        ck_assert(i.dev == j.dev && i.ino == j.ino);
        ck_assert_int_eq(luv_fd_same(a, b), 0);
}
END_TEST

START_TEST(real_vfio)
{
        _cleanup_close_ int cdev = open("/dev/vfio/devices/vfio0", O_RDWR | O_CLOEXEC);
        FdIdentity i;

        if (cdev < 0)
                return;
        ck_assert_int_eq(luv_fd_identify(cdev, false, &i, NULL), 0);
        ck_assert_int_eq(i.kind, FD_KIND_VFIO);
        ck_assert(luv_pci_address_valid(i.device));
        (void) fprintf(stderr, "%s\n", i.device);
}
END_TEST

int main(void)
{
        Suite *suite = suite_create("fd-identify");
        TCase *c = tcase_create("fd-identify");
        SRunner *runner;
        int failed;

        tcase_add_test(c, names);
        tcase_add_test(c, memfds);
        tcase_add_test(c, stand_ins);
        tcase_add_test(c, preserved);
        tcase_add_test(c, others);
        tcase_add_test(c, real_iommufd);
        tcase_add_test(c, real_vfio);
        suite_add_tcase(suite, c);
        runner = srunner_create(suite);
        srunner_set_tap(runner, "-");
        srunner_run_all(runner, CK_SILENT);
        failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
