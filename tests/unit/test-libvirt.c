/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <check.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <zlib.h>

#include "agents/agent-libvirt/libvirt-private.h"
#include "util/io.h"
#include "util/string-util.h"

#define NAMESPACE "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"
#define DEVICES                                                                                             \
        "<devices>"                                                                                         \
        "<hostdev mode='subsystem' type='pci' managed='yes'><driver name='vfio' iommufd='yes'/>"            \
        "<source><address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></source>"                 \
        "<address type='pci' domain='0x0000' bus='0x07' slot='0x00' function='0x0'/></hostdev>"             \
        "<hostdev mode='subsystem' type='pci' managed='no'>"                                                \
        "<source><address domain='0x0001' bus='0xab' slot='0x1f' function='0x7'/></source></hostdev>"       \
        "<hostdev mode='subsystem' type='usb'><source><address bus='1' device='2'/></source></hostdev>"     \
        "</devices>"

START_TEST(read_xml)
{
        _cleanup_free_ char *reason = NULL;
        LibvirtXml x = {};

        ck_assert_int_eq(luv_libvirt_xml_parse("<domain type='kvm'>" DEVICES "</domain>", &x, &reason), 0);
        ck_assert_uint_eq(luv_strv_length(x.devices), 2);
        ck_assert_str_eq(x.devices[0], "0000:01:00.0");
        ck_assert_str_eq(x.devices[1], "0001:ab:1f.7");
        ck_assert_uint_eq(luv_strv_length(x.managed), 1);
        ck_assert_str_eq(x.managed[0], "0000:01:00.0");
        ck_assert_uint_eq(luv_strv_length(x.no_iommufd), 1);
        ck_assert_str_eq(x.no_iommufd[0], "0001:ab:1f.7");
        luv_libvirt_xml_done(&x);
        ck_assert_int_eq(luv_libvirt_xml_parse("<domain/>", &x, &reason), 0);
        ck_assert_ptr_null(x.devices);
        for (size_t i = 0; i < 4; i++) {
                static const char *const bad[] = { "", "<domain>", "<network/>", "no XML" };

                ck_assert_int_eq(luv_libvirt_xml_parse(bad[i], &x, &reason), -EBADMSG);
                ck_assert_ptr_nonnull(reason);
                free(reason);
                reason = NULL;
        }
}
END_TEST

static unsigned count(const char *s, const char *what)
{
        unsigned n = 0;

        for (const char *p = s; (p = strstr(p, what)); p++)
                n++;
        return n;
}

/* However often it is done: one channel, and all else as it was. */
static void change(const char *xml, const char *kept)
{
        _cleanup_free_ char *once = NULL, *twice = NULL, *reason = NULL;
        LibvirtXml x = {};

        ck_assert_msg(luv_libvirt_image_xml(xml, "/run/a b.sock", &once, &reason) == 0, "%s",
                      strempty(reason));
        ck_assert_uint_eq(count(once, "\"-incoming\""), 1);
        ck_assert_uint_eq(count(once, "/run/a b.sock"), 1);
        ck_assert_uint_eq(count(once, "<qemu:commandline"), 1);
        ck_assert_ptr_nonnull(strstr(once, "xmlns:qemu=\"http://libvirt.org/schemas/domain/qemu/1.0\""));
        ck_assert_msg(strstr(once, kept) != NULL, "%s in %s", kept, once);
        ck_assert_int_eq(luv_libvirt_image_xml(once, "/run/a b.sock", &twice, &reason), 0);
        ck_assert_str_eq(once, twice);
        ck_assert_int_eq(luv_libvirt_xml_parse(once, &x, &reason), 0);
        luv_libvirt_xml_done(&x);
}

START_TEST(change_xml)
{
        _cleanup_free_ char *xml = NULL, *reason = NULL;

        change("<domain type='kvm'><name>a &amp; &lt;b&gt;</name></domain>",
               "<name>a &amp; &lt;b&gt;</name>");
        change("<domain type='kvm' " NAMESPACE "><qemu:commandline><qemu:arg value='-machine'/>"
               "<qemu:arg value='aux-ram-share=on'/></qemu:commandline></domain>",
               "<qemu:arg value=\"-machine\"></qemu:arg><qemu:arg value=\"aux-ram-share=on\"></qemu:arg>");
        change("<domain type='kvm' " NAMESPACE "><qemu:commandline>\n <qemu:arg value='-incoming'/>\n "
               "<qemu:arg value='old'/>\n <qemu:arg value='-x'/></qemu:commandline></domain>",
               "<qemu:arg value=\"-x\">");
        ck_assert_int_eq(luv_libvirt_image_xml("<domain type='kvm' " NAMESPACE
                                               "><qemu:commandline><qemu:arg "
                                               "value='-incoming'/><qemu:arg "
                                               "value='old'/></qemu:commandline></domain>",
                                               "/x", &xml, &reason),
                         0);
        ck_assert_ptr_null(strstr(xml, "old"));
        free(xml);
        xml = NULL;
        ck_assert_int_eq(luv_libvirt_image_xml("<pool/>", "/x", &xml, &reason), -EBADMSG);
}
END_TEST

/* What libvirt has of a domain that runs. */
START_TEST(tidy)
{
        static const char bare
                        [] = "<domstatus state=\"running\"><domain><name>a &amp; b</name><qemu:commandline>"
                             "<qemu:arg value=\"-x\"></qemu:arg></qemu:commandline></domain></domstatus>",
                    status[] = "<!-- made by libvirt -->\n<domstatus state='running'><domain><name>a &amp; b"
                               "</name><qemu:commandline><qemu:arg value='-x'/><qemu:arg value='-incoming'/>"
                               "<qemu:arg value='{}'/></qemu:commandline></domain></domstatus>";
        static const struct {
                const char *name, *text;
        } files[] = {
                { "came.xml", status }, { "never.xml", bare },     { "came.pid", status },
                { "bad.xml", "<dom" },  { "pool.xml", "<pool/>" },
        };
        char dir[] = "/tmp/test-libvirt-XXXXXX";
        _cleanup_free_ char *text = NULL;
        size_t size;
        int fd;

        ck_assert_ptr_nonnull(mkdtemp(dir));
        fd = open(dir, O_DIRECTORY | O_CLOEXEC);
        ck_assert_int_ge(fd, 0);
        for (size_t i = 0; i < ELEMENTSOF(files); i++)
                ck_assert_int_eq(luv_write_file_atomic(fd, files[i].name, files[i].text,
                                                       strlen(files[i].text), 0600),
                                 0);
        ck_assert_int_eq(luv_libvirt_tidy(dir, false), 1);
        ck_assert_int_eq(luv_libvirt_tidy(dir, true), 1);
        ck_assert_int_eq(luv_libvirt_tidy(dir, true), 0);
        ck_assert_int_eq(luv_read_file(fd, "came.xml", 1 << 20, &text, &size), 0);
        ck_assert_str_eq(text, bare);
        for (size_t i = 1; i < ELEMENTSOF(files); i++) {
                _cleanup_free_ char *same = NULL;

                ck_assert_int_eq(luv_read_file(fd, files[i].name, 1 << 20, &same, &size), 0);
                ck_assert_str_eq(same, files[i].text);
        }
        for (size_t i = 0; i < ELEMENTSOF(files); i++)
                ck_assert_int_eq(unlinkat(fd, files[i].name, 0), 0);
        close(fd);
        ck_assert_int_eq(rmdir(dir), 0);
        ck_assert_int_eq(luv_libvirt_tidy(dir, true), 0);
}
END_TEST

START_TEST(image)
{
        _cleanup_free_ char *data = NULL, *reason = NULL, *again = malloc(100000), *xml = NULL;
        _cleanup_close_ int stream = memfd_create("stream", MFD_CLOEXEC);
        _cleanup_free_ uint8_t *state = malloc(100000);
        char path[] = "/tmp/test-libvirt-XXXXXX";
        uint32_t numbers[5];
        z_stream z = {};
        struct stat st;
        size_t size;
        int fd;

        fd = mkstemp(path);
        ck_assert_int_ge(fd, 0);
        close(fd);
        ck_assert(state && again);
        for (size_t i = 0; i < 100000; i++)
                state[i] = (uint8_t) (i * i >> 7);
        ck_assert_int_eq(luv_write_all(stream, state, 100000), 0);
        ck_assert_msg(luv_libvirt_image_write(path, "<domain/>", "/x", stream, 100000, true, &reason) == 0,
                      "%s", strempty(reason));
        ck_assert_int_eq(stat(path, &st), 0);
        ck_assert_uint_eq(st.st_mode & 0777, 0600);
        ck_assert_int_eq(luv_read_file(AT_FDCWD, path, 1 << 20, &data, &size), 0);
        ck_assert_int_eq(memcmp(data, "LibvirtQemudSave", 16), 0);
        memcpy(numbers, data + 16, sizeof(numbers));
        ck_assert_uint_eq(numbers[0], 2);
        ck_assert_uint_eq(numbers[2], 1);
        ck_assert_uint_eq(numbers[3], 1);
        ck_assert_uint_eq(numbers[4], 0);
        ck_assert_int_eq(luv_libvirt_image_xml("<domain/>", "/x", &xml, &reason), 0);
        ck_assert_uint_eq(numbers[1], strlen(xml) + 1);
        ck_assert_str_eq(data + 92, xml);
        ck_assert_int_eq(inflateInit2(&z, MAX_WBITS + 16), Z_OK);
        z.next_in = (uint8_t *) data + 92 + numbers[1];
        z.avail_in = (uInt) (size - 92 - numbers[1]);
        z.next_out = (uint8_t *) again;
        z.avail_out = 100000;
        ck_assert_int_eq(inflate(&z, Z_FINISH), Z_STREAM_END);
        ck_assert_uint_eq(z.total_out, 100000);
        ck_assert_uint_eq(z.avail_in, 0);
        (void) inflateEnd(&z);
        ck_assert_int_eq(memcmp(again, state, 100000), 0);

        /* A stream that ends before it should, and a place that cannot be written. */
        ck_assert_int_lt(luv_libvirt_image_write(path, "<domain/>", "/x", stream, 100001, true, &reason), 0);
        ck_assert_int_lt(luv_libvirt_image_write("/nowhere/at/all", "<domain/>", "/x", stream, 100000, true,
                                                 &reason),
                         0);
        ck_assert_ptr_nonnull(strstr(reason, "/nowhere/at/all"));
        (void) unlink(path);
}
END_TEST

int main(void)
{
        Suite *s = suite_create("libvirt");
        TCase *tc = tcase_create("libvirt");
        SRunner *sr;
        int failed;

        tcase_add_test(tc, read_xml);
        tcase_add_test(tc, change_xml);
        tcase_add_test(tc, tidy);
        tcase_add_test(tc, image);
        suite_add_tcase(s, tc);
        sr = srunner_create(s);
        srunner_set_tap(sr, "-");
        srunner_run_all(sr, CK_SILENT);
        failed = srunner_ntests_failed(sr);
        srunner_free(sr);
        return failed > 0;
}
