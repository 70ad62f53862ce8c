/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <check.h>
#include <fcntl.h>
#include <sys/mman.h>

#include "kexec/kexec.h"
#include "util/crc32c.h"
#include "util/io.h"
#include "util/string-util.h"

#define SETUP_SECTORS 2u
#define HEAD_SIZE ((SETUP_SECTORS + 1) * 512u)
#define PAYLOAD_SIZE 4096u
#define IMAGE_SIZE (HEAD_SIZE + PAYLOAD_SIZE)

static void put16(uint8_t *p, unsigned v)
{
        p[0] = (uint8_t) v;
        p[1] = (uint8_t) (v >> 8);
}

static void put32(uint8_t *p, uint32_t v)
{
        put16(p, v & 0xffff);
        put16(p + 2, v >> 16);
}

/* A bzImage as far as its header goes. */
static void make_image(uint8_t image[static IMAGE_SIZE])
{
        memset(image, 0, IMAGE_SIZE);
        image[0x1f1] = SETUP_SECTORS;
        put32(image + 0x1f4, PAYLOAD_SIZE / 16);
        put16(image + 0x1fe, 0xaa55);
        memcpy(image + 0x202, "HdrS", 4);
        put16(image + 0x206, 0x20f);
        put16(image + 0x20e, 0x100);
        put16(image + 0x236, 1);
        strcpy((char *) image + 0x300, "7.3.4-luvfio-a (builder@host) #1 SMP");
}

static size_t put_table(uint8_t *p, const char *text)
{
        memcpy(p, "LUVFIO-LUO-ABI\0", 16);
        put32(p + 16, (uint32_t) strlen(text));
        put32(p + 20, luv_crc32c(text, strlen(text)));
        memcpy(p + 24, text, strlen(text));
        return 24 + strlen(text);
}

static int make_file(const void *data, size_t size)
{
        int fd = memfd_create("image", MFD_CLOEXEC);

        ck_assert_int_ge(fd, 0);
        ck_assert_int_eq(luv_write_all(fd, data, size), 0);
        return fd;
}

static int inspect(const void *data, size_t size, KexecImage *ret, char **ret_reason)
{
        _cleanup_close_ int fd = make_file(data, size);

        return luv_kexec_inspect(fd, ret, ret_reason);
}

START_TEST(images)
{
        _cleanup_(luv_kexec_image_done) KexecImage plain = {}, with_table = {};
        uint8_t image[IMAGE_SIZE];

        make_image(image);
        ck_assert_int_eq(inspect(image, sizeof(image), &plain, NULL), 0);
        ck_assert_str_eq(plain.release, "7.3.4-luvfio-a");
        ck_assert_uint_eq(plain.size, sizeof(image));
        ck_assert_ptr_null(plain.abi);

        /* One with a wrong sum before it is passed over. */
        (void) put_table(image + HEAD_SIZE, "file x rw\n");
        image[HEAD_SIZE + 24] = 'F';
        (void) put_table(image + HEAD_SIZE + 100, "luo luo-v5 rw\nfile memfd-v2 rw\n");
        ck_assert_int_eq(inspect(image, sizeof(image), &with_table, NULL), 0);
        ck_assert_str_eq(with_table.abi, "luo luo-v5 rw\nfile memfd-v2 rw\n");
}
END_TEST

/* Wherever it lies, across the borders of what is read at once too. */
START_TEST(tables_anywhere)
{
        const size_t size = 3 * 1024 * 1024;
        _cleanup_free_ uint8_t *image = calloc(1, size);
        const size_t places[] = { 1024 * 1024 - 40,     1024 * 1024 - 24,     1024 * 1024 - 16,
                                  1024 * 1024 - 15,     1024 * 1024 - 1,      1024 * 1024,
                                  2 * 1024 * 1024 - 17, 2 * 1024 * 1024 - 31, size - 24 - 4 };

        ck_assert_ptr_nonnull(image);
        for (size_t i = 0; i < ELEMENTSOF(places); i++) {
                _cleanup_(luv_kexec_image_done) KexecImage found = {};

                memset(image, 0, size);
                make_image(image);
                (void) put_table(image + places[i], "a b\n");
                ck_assert_int_eq(inspect(image, size, &found, NULL), 0);
                ck_assert_msg(found.abi != NULL, "at %zu", places[i]);
                ck_assert_str_eq(found.abi, "a b\n");
        }
        /* Ones that go beyond the end, or are far too long. */
        memset(image, 0, size);
        make_image(image);
        memcpy(image + size - 20, "LUVFIO-LUO-ABI\0", 16);
        (void) put_table(image + 5000, "a b\n");
        put32(image + 5016, UINT32_MAX);
        (void) put_table(image + 6000, "a b\n");
        put32(image + 6016, 2 * 1024 * 1024);
        (void) put_table(image + 7000, "a b\n");
        put32(image + 7016, 0);
        {
                _cleanup_(luv_kexec_image_done) KexecImage found = {};

                ck_assert_int_eq(inspect(image, size, &found, NULL), 0);
                ck_assert_ptr_null(found.abi);
        }
}
END_TEST

static void refused(const void *data, size_t size, const char *part)
{
        _cleanup_free_ char *reason = NULL;
        KexecImage none = {};

        ck_assert_int_eq(inspect(data, size, &none, &reason), -ENOEXEC);
        ck_assert_ptr_nonnull(reason);
        ck_assert_msg(strstr(reason, part) != NULL, "\"%s\" is not in \"%s\"", part, reason);
        ck_assert_ptr_null(none.release);
}

START_TEST(no_images)
{
        uint8_t image[IMAGE_SIZE];
        _cleanup_free_ char *reason = NULL, *second = NULL;
        KexecImage none;
        int pair[2];

        refused("", 0, "too short");
        refused("#!/bin/sh\n", 10, "too short");
        memset(image, 'x', sizeof(image));
        refused(image, sizeof(image), "no x86 kernel image");
        make_image(image);
        refused(image, 0x240, "cut off");
        refused(image, sizeof(image) - 1, "cut off");
        put16(image + 0x1fe, 0);
        refused(image, sizeof(image), "no x86 kernel image");
        make_image(image);
        put16(image + 0x206, 0x20b);
        refused(image, sizeof(image), "before Linux 3.8");
        make_image(image);
        put16(image + 0x236, 0);
        refused(image, sizeof(image), "64-bit");
        make_image(image);
        put16(image + 0x20e, 0);
        refused(image, sizeof(image), "does not say its version");
        put16(image + 0x20e, 0xffff);
        refused(image, sizeof(image), "outside");
        make_image(image);
        memset(image + 0x300, 1, 300);
        refused(image, sizeof(image), "no text");

        ck_assert_int_eq(pipe2(pair, O_CLOEXEC), 0);
        ck_assert_int_eq(luv_kexec_inspect(pair[0], &none, &reason), -ENOEXEC);
        ck_assert_str_eq(reason, "the kernel image is no regular file");
        ck_assert_int_eq(luv_kexec_inspect(-1, &none, &second), -EBADF);
        ck_assert_ptr_nonnull(second);
        (void) close(pair[0]);
        (void) close(pair[1]);
}
END_TEST

/* A UKI: a PE file with sections. */
START_TEST(unified)
{
        static uint8_t uki[IMAGE_SIZE + 4096];
        _cleanup_(luv_kexec_image_done) KexecImage found = {};
        uint8_t *section = uki + 0x80 + 24 + 16;

        memset(uki, 0, sizeof(uki));
        memcpy(uki, "MZ", 2);
        put32(uki + 0x3c, 0x80);
        memcpy(uki + 0x80, "PE\0\0", 4);
        put16(uki + 0x80 + 6, 2);
        put16(uki + 0x80 + 20, 16);
        memcpy(section, ".osrel\0\0", 8);
        memcpy(section + 40, ".linux\0\0", 8);
        put32(section + 48, IMAGE_SIZE);
        put32(section + 56, IMAGE_SIZE + 512);
        put32(section + 60, 2048);
        make_image(uki + 2048);
        (void) put_table(uki + 2048 + HEAD_SIZE + 7, "a b rw\n");
        ck_assert_int_eq(inspect(uki, sizeof(uki), &found, NULL), 0);
        ck_assert_str_eq(found.release, "7.3.4-luvfio-a");
        ck_assert_str_eq(found.abi, "a b rw\n");
        ck_assert_uint_eq(found.size, IMAGE_SIZE);

        put32(section + 60, sizeof(uki));
        refused(uki, sizeof(uki), "beyond its end");
        put32(section + 60, UINT32_MAX);
        refused(uki, sizeof(uki), "beyond its end");
        put32(section + 60, 1024);
        refused(uki, sizeof(uki), "section .linux of the UKI is no");
        put32(section + 48, 16);
        refused(uki, sizeof(uki), "too short");
        memcpy(section + 40, ".linus\0\0", 8);
        refused(uki, sizeof(uki), "no x86 kernel image");
        put32(uki + 0x3c, UINT32_MAX);
        refused(uki, sizeof(uki), "no x86 kernel image");
        put16(uki + 0x80 + 6, 0xffff);
        put32(uki + 0x3c, 0x80);
        refused(uki, sizeof(uki), "no x86 kernel image");
}
END_TEST

/* Nothing that a flipped bit does to a header makes more of it than a refusal or another text. */
START_TEST(damaged_headers)
{
        uint8_t image[IMAGE_SIZE];

        make_image(image);
        (void) put_table(image + HEAD_SIZE, "a b rw\n");
        for (size_t i = 0x1f0; i < 0x240; i++)
                for (unsigned bit = 0; bit < 8; bit++) {
                        _cleanup_(luv_kexec_image_done) KexecImage found = {};
                        _cleanup_free_ char *reason = NULL;
                        int r;

                        image[i] ^= (uint8_t) (1u << bit);
                        r = inspect(image, sizeof(image), &found, &reason);
                        ck_assert((r == 0) == (reason == NULL));
                        ck_assert(r == 0 || r == -ENOEXEC);
                        image[i] ^= (uint8_t) (1u << bit);
                }
}
END_TEST

START_TEST(abis)
{
        static const struct {
                const char *running, *target, *part; /* part NULL: compatible */
        } cases[] = {
                { "file memfd-v2 rw\n", "file memfd-v2 rw\n", NULL },
                { "file memfd-v2 rw", "file memfd-v2 r", NULL },
                { "file memfd-v2 r\n", "", NULL },
                { "", "", NULL },
                { "\n\nfile a w\n\n", "\nx y rw\nfile a r\n", NULL },
                { "file a w\nflb b w\n", "flb b r\nfile a r\n", NULL },
                { "file memfd-v2 rw\n", "file memfd-v2 w\n", "writes file \"memfd-v2\"" },
                { "file memfd-v2 rw\n", "file memfd-v1 rw\n", "writes file \"memfd-v2\"" },
                { "luo a rw\nfile b rw\n", "luo a rw\nflb b rw\n", "writes file \"b\"" },
                { NULL, "a b rw\n", "running kernel does not say" },
                { "a b rw\n", NULL, "image does not say" },
                { "a b\n", "a b rw\n", "running kernel's table" },
                { "a b rw x\n", "a b rw\n", "running kernel's table" },
                { "a b rw\n", "a\na b rw\n", "image's table" },
        };

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                _cleanup_free_ char *reason = NULL;
                int r = luv_kexec_abi_compatible(cases[i].running, cases[i].target, &reason);

                ck_assert_msg(r == (cases[i].part ? -EPROTONOSUPPORT : 0), "case %zu: %i %s", i, r,
                              strempty(reason));
                if (cases[i].part)
                        ck_assert_msg(strstr(reason, cases[i].part) != NULL, "case %zu: %s", i, reason);
        }
}
END_TEST

START_TEST(cmdlines)
{
        static const struct {
                const char *cmdline, *part;
        } cases[] = {
                { "kho=on liveupdate=on", NULL },
                { "  root=/dev/vda\tkho=1 liveupdate=y intel_iommu=on,sm_on iommu=pt quiet\n", NULL },
                { "\"kho=on\" liveupdate=\"on\"", NULL },
                { "kho=off kho=on liveupdate=0 liveupdate=ON", NULL },
                { "kho=on liveupdate=on intel_iommu=off intel_iommu=on", NULL },
                { "kho=on liveupdate=on x=\"a kho=off b\"", NULL },
                { "kho=on kho=what liveupdate=on liveupdate", NULL },
                { "kho=on liveupdate=on -- kho=off", NULL },
                { "kho=on live-update=off liveupdate=on", NULL },
                { "", "does not say kho=on" },
                { "kho liveupdate=on", "does not say kho=on" },
                { "kho=on", "does not say liveupdate=on" },
                { "kho=on liveupdate=on kho=off", "(kho=off)" },
                { "kho=on liveupdate=on liveupdate=0", "(liveupdate=off)" },
                { "kho=on -- liveupdate=on", "does not say liveupdate=on" },
                { "x=\"kho=on liveupdate=on\"", "does not say kho=on" },
                { "kho_scratch=on xkho=on liveupdate=on", "does not say kho=on" },
                { "kho=on liveupdate=on intel_iommu=off", "(intel_iommu=off)" },
                { "kho=on liveupdate=on intel-iommu=off", "(intel_iommu=off)" },
                { "kho=on liveupdate=on intel_iommu=sm_on,off", "(intel_iommu=off)" },
                { "kho=on liveupdate=on iommu=off iommu=on", "(iommu=off)" },
                { "kho=on liveupdate=on amd_iommu=off", "(amd_iommu=off)" },
        };

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                _cleanup_free_ char *reason = NULL;
                int r = luv_kexec_check_cmdline(cases[i].cmdline, &reason);

                ck_assert_msg(r == (cases[i].part ? -EINVAL : 0), "\"%s\": %i %s", cases[i].cmdline, r,
                              strempty(reason));
                if (cases[i].part)
                        ck_assert_msg(strstr(reason, cases[i].part) != NULL, "\"%s\": %s", cases[i].cmdline,
                                      reason);
        }
}
END_TEST

START_TEST(cleaned)
{
        static const char *const cases[][2] = {
                { "BOOT_IMAGE=/vmlinuz root=/dev/vda  ro quiet initrd=\\initrd", "root=/dev/vda ro quiet" },
                { "\"BOOT_IMAGE=/a b\" x=\"a  b\" y", "x=\"a  b\" y" },
                { "a -- initrd=x b", "a -- initrd=x b" },
                { "BOOT_IMAGE=x", "" },
                { "", "" },
                { "noinitrd xBOOT_IMAGE=1", "noinitrd xBOOT_IMAGE=1" },
        };
        _cleanup_free_ char *running = NULL;

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                _cleanup_free_ char *clean = NULL;

                ck_assert_int_eq(luv_kexec_clean_cmdline(cases[i][0], &clean), 0);
                ck_assert_str_eq(clean, cases[i][1]);
        }
        ck_assert_int_eq(luv_kexec_running_cmdline(&running), 0);
        ck_assert_ptr_null(strchr(running, '\n'));
}
END_TEST

/* What is no kernel never gets as far as the system call. */
START_TEST(loading)
{
        _cleanup_close_ int fd = make_file("#!/bin/sh\n", 10);
        int r;

        ck_assert_int_eq(luv_kexec_load(fd, -EBADF, "kho=on"), -ENOEXEC);
        r = luv_kexec_loaded();
        ck_assert(r == -ENOENT || r == 0 || r == 1);
}
END_TEST

int main(int argc, char *argv[])
{
        Suite *suite;
        SRunner *runner;
        TCase *c;
        int failed;

        /* Given an image: what is known of it, for people and for the test host. */
        if (argc == 2) {
                _cleanup_(luv_kexec_image_done) KexecImage image = {};
                _cleanup_close_ int fd = open(argv[1], O_RDONLY | O_CLOEXEC);
                _cleanup_free_ char *reason = NULL;

                if (luv_kexec_inspect(fd, &image, &reason) < 0) {
                        (void) fprintf(stderr, "%s: %s\n", argv[1], strempty(reason));
                        return EXIT_FAILURE;
                }
                (void) printf("release: %s\nsize: %llu\n%s", image.release, (unsigned long long) image.size,
                              image.abi ? image.abi : "no table of live-update state\n");
                return EXIT_SUCCESS;
        }

        suite = suite_create("kexec");
        c = tcase_create("kexec");
        tcase_add_test(c, images);
        tcase_add_test(c, tables_anywhere);
        tcase_add_test(c, no_images);
        tcase_add_test(c, unified);
        tcase_add_test(c, damaged_headers);
        tcase_add_test(c, abis);
        tcase_add_test(c, cmdlines);
        tcase_add_test(c, cleaned);
        tcase_add_test(c, loading);
        suite_add_tcase(suite, c);
        runner = srunner_create(suite);
        srunner_set_tap(runner, "-");
        srunner_run_all(runner, CK_SILENT);
        failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
