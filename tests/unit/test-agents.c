/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <check.h>
#include <endian.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "agents/cpr.h"
#include "agents/qemu-check.h"
#include "agents/qemu-config.h"
#include "agents/qemu-document.h"
#include "agents/qemu-process.h"
#include "agents/qemu-replay.h"
#include "agents/qmp.h"
#include "agents/vfio-irq.h"
#include "agents/vfio-reset.h"
#include "util/string-util.h"
#include "util/time-util.h"

static int new_memfd(void)
{
        int fd = memfd_create("test", MFD_CLOEXEC);

        ck_assert_int_ge(fd, 0);
        return fd;
}

static uint64_t soon(void)
{
        return luv_now_usec() + 5 * USEC_PER_SEC;
}

/* -- CPR -- */

static void make_state(CprState *s)
{
        const CprDevice device = { .name = (char *) "0000:01:00.0", .devid = 1, .ioas = 2, .hwpt = 3 };

        *s = (CprState) {};
        for (int i = 0; i < 300; i++) {
                int fd = new_memfd();

                ck_assert_int_eq(luv_cpr_add_fd(s, i % 2 ? "0000:01:00.0_kvm_interrupt" : "ram", i, &fd), 0);
                ck_assert_int_eq(fd, -EBADF);
        }
        ck_assert_int_eq(luv_cpr_add_device(s, &device), 0);
}

/* More than one message can carry, through a socket that takes less than all of it at a time. */
START_TEST(cpr_there_and_back)
{
        _cleanup_cpr_state_ CprState s = {}, got = {};
        _cleanup_free_ char *reason = NULL;
        struct stat a, b;
        int pair[2], status;
        pid_t child;

        make_state(&s);
        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        child = fork();
        ck_assert_int_ge(child, 0);
        if (child == 0) {
                close(pair[0]);
                _exit(luv_cpr_send(pair[1], &s, soon()) == 0 ? 0 : 1);
        }
        close(pair[1]);
        ck_assert_msg(luv_cpr_receive(pair[0], soon(), &got, &reason) == 0, "%s", strempty(reason));
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        ck_assert_int_eq(status, 0);
        close(pair[0]);

        ck_assert_uint_eq(got.n_fds, s.n_fds);
        for (size_t i = 0; i < s.n_fds; i++) {
                const CprFd *f = luv_cpr_find_fd(&got, s.fds[i].name, s.fds[i].id);

                ck_assert_ptr_nonnull(f);
                ck_assert_int_eq(fstat(f->fd, &a), 0);
                ck_assert_int_eq(fstat(s.fds[i].fd, &b), 0);
                ck_assert_uint_eq(a.st_ino, b.st_ino);
                ck_assert_int_ne(fcntl(f->fd, F_GETFD) & FD_CLOEXEC, 0);
        }
        ck_assert_uint_eq(got.n_devices, 1);
        ck_assert_str_eq(got.devices[0].name, "0000:01:00.0");
        ck_assert_int_eq(got.devices[0].devid, 1);
        ck_assert_uint_eq(got.devices[0].ioas, 2);
        ck_assert_uint_eq(got.devices[0].hwpt, 3);
        ck_assert_ptr_null(luv_cpr_find_fd(&got, "ram", 1));
}
END_TEST

typedef struct Bytes {
        uint8_t data[1024];
        size_t n;
} Bytes;

static void put(Bytes *b, const void *data, size_t n)
{
        ck_assert_uint_le(b->n + n, sizeof(b->data));
        memcpy(b->data + b->n, data, n);
        b->n += n;
}

static void put_u32(Bytes *b, uint32_t v)
{
        v = htobe32(v);
        put(b, &v, sizeof(v));
}

static void put_name(Bytes *b, const char *s)
{
        put_u32(b, (uint32_t) strlen(s) + 1);
        put(b, s, strlen(s) + 1);
}

static void put_fd(Bytes *b, const char *name, uint32_t id)
{
        put(b, "\1", 1);
        put_name(b, name);
        put_u32(b, id);
        put(b, " ", 1);
}

static Bytes begin(uint32_t magic, uint32_t version)
{
        Bytes b = {};

        put_u32(&b, magic);
        put_u32(&b, version);
        return b;
}

static Bytes good(void)
{
        static const char section[] = "CprState/vfio devices";
        Bytes b = begin(0x51435052, 1);

        put_fd(&b, "ram", 0);
        put_fd(&b, "iommufd0", 0);
        put(&b, "\0\5", 2);
        put(&b, (uint8_t[]) { STRLEN(section) }, 1);
        put(&b, section, STRLEN(section));
        put_u32(&b, 1);
        put(&b, "\1", 1);
        put_name(&b, "hostdev0");
        put_u32(&b, 1);
        put_u32(&b, 2);
        put_u32(&b, 3);
        put(&b, "\0", 1);
        return b;
}

/* With N fds, all of which are closed or taken afterwards. */
static int parse(const Bytes *b, size_t size, size_t n, CprState *ret)
{
        _cleanup_free_ char *reason = NULL;
        int fds[8], r;

        for (size_t i = 0; i < n; i++)
                fds[i] = new_memfd();
        r = luv_cpr_parse(b->data, size, fds, n, ret, &reason);
        for (size_t i = 0; i < n; i++)
                safe_close(fds[i]);
        if (r < 0)
                ck_assert_ptr_nonnull(reason);
        return r;
}

START_TEST(cpr_parse)
{
        CprState s = {};
        Bytes b = good();

        ck_assert_int_eq(parse(&b, b.n, 2, &s), 0);
        ck_assert_uint_eq(s.n_fds, 2);
        ck_assert_uint_eq(s.n_devices, 1);
        luv_cpr_state_done(&s);
        /* A QEMU without devices may leave the section out. */
        b = begin(0x51435052, 1);
        put(&b, "\0", 1);
        ck_assert_int_eq(parse(&b, b.n, 0, &s), 0);
        luv_cpr_state_done(&s);

        b = good();
        for (size_t n = 0; n < b.n; n++) {
                /* All that could be left out at the end is the section as a whole. */
                int r = parse(&b, n, 2, &s);

                if (r >= 0)
                        luv_cpr_state_done(&s);
                else
                        ck_assert_int_eq(r, -EBADMSG);
                ck_assert_int_eq(r >= 0, n == 8 + 2 * (1 + 4 + 4 + 1) + 4 + 9 + 1);
        }
        ck_assert_int_eq(parse(&b, b.n, 1, &s), -EBADMSG);
        ck_assert_int_eq(parse(&b, b.n, 3, &s), -EBADMSG);
        b.data[8] = 2;
        ck_assert_int_eq(parse(&b, b.n, 2, &s), -EBADMSG);

        b = begin(0x51435053, 1);
        put(&b, "\0", 1);
        ck_assert_int_eq(parse(&b, b.n, 0, &s), -EBADMSG);
        b = begin(0x51435052, 2);
        put(&b, "\0", 1);
        ck_assert_int_eq(parse(&b, b.n, 0, &s), -EPROTONOSUPPORT);
        b = begin(0x51435052, 1);
        put(&b, "\0\5\3new\0\0\0\1", 10);
        ck_assert_int_eq(parse(&b, b.n, 0, &s), -EPROTONOSUPPORT);

        /* Twice the same, a name without an end, with one in the middle, none, and one that is too long. */
        b = begin(0x51435052, 1);
        put_fd(&b, "ram", 0);
        put_fd(&b, "ram", 0);
        put(&b, "\0", 1);
        ck_assert_int_eq(parse(&b, b.n, 2, &s), -EBADMSG);
        b = good();
        b.data[8 + 1 + 4 + 3] = 'x';
        ck_assert_int_eq(parse(&b, b.n, 2, &s), -EBADMSG);
        b = good();
        b.data[8 + 1 + 4 + 1] = 0;
        ck_assert_int_eq(parse(&b, b.n, 2, &s), -EBADMSG);
        b = begin(0x51435052, 1);
        put_fd(&b, "", 0);
        ck_assert_int_eq(parse(&b, b.n, 1, &s), -EBADMSG);
        b = begin(0x51435052, 1);
        put(&b, "\1\0\0\1\1", 5);
        ck_assert_int_eq(parse(&b, b.n, 1, &s), -EBADMSG);
}
END_TEST

START_TEST(cpr_timeout)
{
        _cleanup_free_ char *reason = NULL;
        CprState s = {};
        Bytes b = good();
        int pair[2];

        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        ck_assert_int_eq(luv_cpr_receive(pair[0], luv_now_usec() + 20 * USEC_PER_MSEC, &s, &reason),
                         -ETIMEDOUT);
        ck_assert_ptr_nonnull(reason);
        /* And with no fds where there should be some. */
        ck_assert_int_eq(write(pair[1], b.data, b.n), (ssize_t) b.n);
        close(pair[1]);
        free(reason);
        reason = NULL;
        ck_assert_int_eq(luv_cpr_receive(pair[0], soon(), &s, &reason), -EBADMSG);
        close(pair[0]);
        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        make_state(&s);
        close(pair[0]);
        ck_assert_int_eq(luv_cpr_send(pair[1], &s, soon()), -EPIPE);
        close(pair[1]);
        luv_cpr_state_done(&s);
}
END_TEST

/* -- the document -- */

static QemuDocument *make_document(void)
{
        QemuDocument *d = calloc(1, sizeof(*d));

        ck_assert_ptr_nonnull(d);
        d->version = strdup("11.1.3");
        d->machine_type = strdup("pc-q35-11.1");
        d->cwd = strdup("/");
        d->running = true;
        d->stream_size = 87000;
        ck_assert_int_eq(luv_strv_extend(&d->argv, "qemu-system-x86_64"), 0);
        ck_assert_int_eq(luv_strv_extend(&d->argv, "-append"), 0);
        ck_assert_int_eq(luv_strv_extend(&d->argv, ""), 0);
        ck_assert_int_eq(luv_qemu_document_add_preserved(d, &(QemuPreserved) { (char *) "ram", 0,
                                                                               (char *) "memfd1" }),
                         0);
        ck_assert_int_eq(luv_qemu_document_add_preserved(d, &(QemuPreserved) { (char *) "0000:01:00.0", 0,
                                                                               (char *) "vfio3" }),
                         0);
        ck_assert_int_eq(luv_qemu_document_add_eventfd(
                                         d, &(QemuEventfd) { .name = (char *) "0000:01:00.0_kvm_interrupt",
                                                             .id = 7,
                                                             .initial = 1,
                                                             .device = (char *) "0000:01:00.0",
                                                             .irq = VFIO_IRQ_MSIX,
                                                             .vector = 7 }),
                         0);
        ck_assert_int_eq(luv_qemu_document_add_eventfd(d, &(QemuEventfd) { .name = (char *) "other",
                                                                           .irq = _VFIO_IRQ_INVALID }),
                         0);
        ck_assert_int_eq(luv_qemu_document_add_device(d, &(QemuDevice) { (char *) "0000:01:00.0",
                                                                         (char *) "0000:01:00.0", 1, 2, 3 }),
                         0);
        return d;
}

START_TEST(document)
{
        _cleanup_(luv_qemu_document_freep) QemuDocument *d = make_document(), *got = NULL;
        _cleanup_free_ char *reason = NULL;
        _cleanup_close_ int fd = -EBADF;

        ck_assert_msg(luv_qemu_document_write(d, &fd, &reason) == 0, "%s", strempty(reason));
        ck_assert_msg(luv_qemu_document_read(fd, &got, &reason) == 0, "%s", strempty(reason));
        ck_assert_str_eq(got->version, d->version);
        ck_assert_str_eq(got->machine_type, d->machine_type);
        ck_assert_str_eq(got->cwd, "/");
        ck_assert(got->running);
        ck_assert_uint_eq(got->stream_size, 87000);
        ck_assert_uint_eq(luv_strv_length(got->argv), 3);
        ck_assert_str_eq(got->argv[2], "");
        ck_assert_uint_eq(got->n_preserved, 2);
        ck_assert_str_eq(got->preserved[1].file, "vfio3");
        ck_assert_uint_eq(got->n_eventfds, 2);
        ck_assert_int_eq(got->eventfds[0].irq, VFIO_IRQ_MSIX);
        ck_assert_uint_eq(got->eventfds[0].vector, 7);
        ck_assert_uint_eq(got->eventfds[0].initial, 1);
        ck_assert_str_eq(got->eventfds[0].device, "0000:01:00.0");
        ck_assert_ptr_null(got->eventfds[1].device);
        ck_assert_uint_eq(got->n_devices, 1);
        ck_assert_uint_eq(got->devices[0].hwpt, 3);
}
END_TEST

/* What would be refused after the jump is refused before it. */
static void refuse(QemuDocument *d)
{
        _cleanup_free_ char *reason = NULL;
        int fd = -EBADF;

        ck_assert_int_eq(luv_qemu_document_write(d, &fd, &reason), -EINVAL);
        ck_assert_int_eq(fd, -EBADF);
        ck_assert_ptr_nonnull(reason);
        luv_qemu_document_free(d);
}

START_TEST(document_bad)
{
        QemuDocument *d;

        d = make_document();
        d->argv = luv_strv_free(d->argv);
        ck_assert_int_eq(luv_strv_extend(&d->argv, "\xff"), 0);
        refuse(d);
        d = make_document();
        d->eventfds[0].vector = VFIO_VECTORS_MAX;
        refuse(d);
        d = make_document();
        d->eventfds[0].initial = 2;
        refuse(d);
        d = make_document();
        luv_free_and_strdup(&d->eventfds[0].device, "0000:02:00.0");
        refuse(d);
        d = make_document();
        luv_free_and_strdup(&d->devices[0].address, "nowhere");
        refuse(d);
        d = make_document();
        d->devices[0].ioas = UINT64_C(1) << 32;
        refuse(d);
        d = make_document();
        luv_free_and_strdup(&d->preserved[1].name, "hostdev7");
        refuse(d);
        d = make_document();
        luv_free_and_strdup(&d->preserved[0].file, "a\nb");
        refuse(d);
        d = make_document();
        d->preserved[0].id = -1;
        refuse(d);
}
END_TEST

/* -- small things -- */

static void config(const char *text, const char *joined)
{
        _cleanup_strv_ char **argv = NULL;
        _cleanup_free_ char *got = NULL;

        ck_assert_int_eq(luv_qemu_config_parse(text, &argv), 0);
        got = luv_strv_join(argv, "|");
        ck_assert_str_eq(got, joined);
}

START_TEST(configuration)
{
        _cleanup_strv_ char **argv = NULL;

        config("qemu", "qemu");
        config("# a machine\n\n  qemu-system-x86_64  \n-nodefaults\n\t-append  a b=\"c d\" # e  "
               "\r\n--no-user-config",
               "qemu-system-x86_64|-nodefaults|-append|a b=\"c d\" # e|--no-user-config");
        ck_assert_int_eq(luv_qemu_config_parse("", &argv), -EBADMSG);
        ck_assert_int_eq(luv_qemu_config_parse("# nothing\n", &argv), -EBADMSG);
        ck_assert_int_eq(luv_qemu_config_parse("-m 64\n", &argv), -EBADMSG);
        ck_assert_int_eq(luv_qemu_config_read("/nowhere/at/all", &argv), -ENOENT);
        ck_assert_ptr_null(argv);
}
END_TEST

START_TEST(argv_clean)
{
        char *argv[] = { (char *) "qemu",
                         (char *) "-chardev",
                         (char *) "socket,id=luvfio-monitor,fd=7,server=on",
                         (char *) "-qmp",
                         (char *) "chardev:luvfio-monitor",
                         (char *) "-qmp",
                         (char *) "unix:/x",
                         (char *) "--incoming",
                         (char *) "tcp:0:1",
                         (char *) "-incoming",
                         (char *) "defer",
                         (char *) "-S",
                         (char *) "-incoming",
                         NULL };
        _cleanup_strv_ char **v = NULL;
        _cleanup_free_ char *got = NULL;

        ck_assert_int_eq(luv_qemu_argv_clean(argv, &v), 0);
        got = luv_strv_join(v, "|");
        ck_assert_str_eq(got, "qemu|-qmp|unix:/x|-incoming");
}
END_TEST

START_TEST(wired)
{
        static const char text[] = "           CPU0       CPU1\n"
                                   "  0:         12          0  IO-APIC   2-edge      timer\n"
                                   " 16:          0          0  IO-APIC  16-fasteoi   "
                                   "vfio-intx(0000:03:00.0), vfio-intx(0000:02:00.0)\n"
                                   " 30:          0          9  IR-PCI-MSIX-0000:01:00.0    0-edge      "
                                   "vfio-msix[0](0000:01:00.0)\n"
                                   " 31:          0          0  IR-PCI-MSIX-0000:01:00.0    2-edge      "
                                   "vfio-msix[2](0000:01:00.0)\n"
                                   " 32:          0          0  IR-PCI-MSI-0000:04:00.0    0-edge      "
                                   "vfio-msi[0](0000:04:00.0)\n"
                                   " 33:          0          0  IR-PCI-MSIX-0000:05:00.0    2-edge      "
                                   "vfio-msix[99999](0000:05:00.0)\n"
                                   " 34:          0          0  x  vfio-msix[1](0000:01:00.00) vfio-msix[ "
                                   "vfio-intx( vfio-msi[3]\n";
        VfioWired w;

        luv_vfio_wired_parse(text, "0000:01:00.0", &w);
        ck_assert_int_eq(w.type, VFIO_IRQ_MSIX);
        ck_assert_uint_eq(w.n, 3);
        ck_assert(w.vectors[0] && !w.vectors[1] && w.vectors[2]);
        luv_vfio_wired_parse(text, "0000:02:00.0", &w);
        ck_assert_int_eq(w.type, VFIO_IRQ_INTX);
        luv_vfio_wired_parse(text, "0000:04:00.0", &w);
        ck_assert_int_eq(w.type, VFIO_IRQ_MSI);
        ck_assert_uint_eq(w.n, 1);
        luv_vfio_wired_parse(text, "0000:05:00.0", &w);
        ck_assert_int_lt(w.type, 0);
        luv_vfio_wired_parse(text, "0000:00:04.0", &w);
        ck_assert_int_lt(w.type, 0);
        ck_assert_int_eq(luv_vfio_wired_read("0000:00:00.0", &w), 0);
        ck_assert_int_lt(w.type, 0);
}
END_TEST

/* Config space as of a device that has these. */
static bool reset_with_board(uint8_t pcie_flr, uint8_t advanced, uint8_t no_soft_reset, bool reset_works)
{
        uint8_t config[256] = {
                [0x06] = 0x10,    [0x34] = 0x40,                         /* a list */
                [0x40] = 0x01,    [0x41] = 0x50, [0x44] = no_soft_reset, /* power management */
                [0x50] = 0x10,    [0x51] = 0x60, [0x57] = pcie_flr,      /* PCI Express */
                [0x60] = 0x13,    [0x61] = 0x40, [0x62] = 6,
                [0x63] = advanced /* advanced features; a loop */
        };

        return luv_vfio_is_reset_with_board(config, reset_works);
}

START_TEST(reset)
{
        uint8_t none[256] = {}, odd[256] = { [0x06] = 0x10, [0x34] = 0xfc, [0xfc] = 0x01 };

        /* As QEMU's igb and NVMe. */
        ck_assert(!reset_with_board(0x10, 0, 0x00, true));
        /* Its e1000e, for which power management would do. */
        ck_assert(reset_with_board(0, 0, 0x00, true));
        ck_assert(!reset_with_board(0, 0x03, 0x00, true));
        ck_assert(reset_with_board(0, 0x01, 0x00, true));
        ck_assert(!reset_with_board(0, 0, 0x08, true));
        /* Its AHCI. */
        ck_assert(reset_with_board(0x10, 0x03, 0x08, false));
        ck_assert(luv_vfio_is_reset_with_board(none, false));
        ck_assert(!luv_vfio_is_reset_with_board(none, true));
        /* A capability that is not whole. */
        ck_assert(!luv_vfio_is_reset_with_board(odd, true));
        ck_assert_int_lt(luv_vfio_ask_reset_with_board(STDIN_FILENO), 0);
}
END_TEST

/* -- a monitor -- */

#define GREETING                                                                                            \
        "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 3, \"minor\": 1, \"major\": 11}}, "                 \
        "\"capabilities\": []}}\r\n"

/* The other end says each of the texts when it has read a line; then it hangs up. */
static int monitor(const char *const *texts, pid_t *ret)
{
        int pair[2];

        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        *ret = fork();
        ck_assert_int_ge(*ret, 0);
        if (*ret == 0) {
                FILE *f = fdopen(pair[1], "r+");
                char line[1024];

                close(pair[0]);
                for (size_t i = 0; texts[i]; i++) {
                        if (i > 0 && !fgets(line, sizeof(line), f))
                                _exit(1);
                        /* In pieces. */
                        for (const char *p = texts[i]; *p; p += strnlen(p, 7)) {
                                if (write(pair[1], p, strnlen(p, 7)) < 0)
                                        _exit(1);
                        }
                }
                _exit(0);
        }
        close(pair[1]);
        return pair[0];
}

START_TEST(qmp)
{
        const char *const texts[] = {
                GREETING,
                "{\"return\": {}, \"id\": 1}\r\n",
                "{\"event\": \"STOP\"}\n{\"return\": [], \"id\": 1}\n{\"return\": {\"status\": "
                "\"running\"}, \"id\": 2}\n",
                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"not today\"}, \"id\": 3}\n",
                "{\"return\": {}, \"id\": 4}\n{\"event\": \"A\"}\n{\"event\": \"MIGRATION\", \"data\": "
                "{\"status\": \"completed\"}}\n",
                "nonsense\n",
                NULL,
        };
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL, *data = NULL;
        _cleanup_free_ char *reason = NULL, *name = NULL;
        _cleanup_(luv_qmp_freep) Qmp *q = NULL;
        unsigned major, minor;
        uint64_t begin;
        pid_t child;
        int fd;

        fd = monitor(texts, &child);
        ck_assert_msg(luv_qmp_open(&fd, soon(), &q, &reason) == 0, "%s", strempty(reason));
        ck_assert_str_eq(luv_qmp_get_version(q), "11.1.3");
        luv_qmp_get_version_numbers(q, &major, &minor);
        ck_assert_uint_eq(major, 11);
        ck_assert_uint_eq(minor, 1);
        ck_assert_int_eq(luv_qmp_call(q, "query-status", NULL, soon(), &v, &reason), 0);
        ck_assert_str_eq(sd_json_variant_string(sd_json_variant_by_key(v, "status")), "running");
        ck_assert_int_eq(luv_qmp_take_event(q, &name, NULL), 1);
        ck_assert_str_eq(name, "STOP");
        ck_assert_int_eq(luv_qmp_take_event(q, &name, NULL), 0);
        ck_assert_int_eq(luv_qmp_call(q, "cont", NULL, soon(), NULL, &reason), -EREMOTEIO);
        ck_assert_str_eq(reason, "QEMU refuses cont: not today");
        free(reason);
        reason = NULL;
        ck_assert_int_eq(luv_qmp_call(q, "x", NULL, soon(), NULL, &reason), 0);
        /* What came with an answer is not waited for. */
        begin = luv_now_usec();
        ck_assert_int_eq(luv_qmp_wait_event(q, "MIGRATION", soon(), &data), 0);
        ck_assert_uint_lt(luv_now_usec() - begin, 4 * USEC_PER_SEC);
        ck_assert_str_eq(sd_json_variant_string(sd_json_variant_by_key(data, "status")), "completed");
        ck_assert_int_eq(luv_qmp_call(q, "y", NULL, soon(), NULL, &reason), -EBADMSG);
        ck_assert_ptr_nonnull(strstr(reason, "makes no sense"));
        ck_assert_int_eq(waitpid(child, NULL, 0), child);
}
END_TEST

/* What QEMU says last is heard, though it has hung up by then. */
START_TEST(qmp_last_words)
{
        const char *const texts[] = {
                GREETING,
                "{\"return\": {}, \"id\": 1}\n",
                "{\"return\": {}, \"id\": 2}\n{\"event\": \"MIGRATION\"}\n",
                NULL,
        };
        _cleanup_free_ char *reason = NULL;
        _cleanup_(luv_qmp_freep) Qmp *q = NULL;
        pid_t child;
        int fd;

        fd = monitor(texts, &child);
        ck_assert_msg(luv_qmp_open(&fd, soon(), &q, &reason) == 0, "%s", strempty(reason));
        ck_assert_int_eq(luv_qmp_begin(q, "migrate", NULL, soon(), &reason), 0);
        ck_assert_int_eq(waitpid(child, NULL, 0), child);
        ck_assert_int_eq(luv_qmp_try_end(q, "migrate", NULL, &reason), 1);
        ck_assert_int_eq(luv_qmp_wait_event(q, "MIGRATION", soon(), NULL), 0);
        ck_assert_int_eq(luv_qmp_wait_event(q, "MIGRATION", soon(), NULL), -ECONNRESET);
}
END_TEST

static void refuse_monitor(const char *greeting, int error)
{
        const char *const texts[] = { greeting, NULL };
        _cleanup_free_ char *reason = NULL;
        Qmp *q = NULL;
        pid_t child;
        int fd;

        fd = monitor(texts, &child);
        ck_assert_int_eq(luv_qmp_open(&fd, soon(), &q, &reason), error);
        ck_assert_ptr_null(q);
        ck_assert_ptr_nonnull(reason);
        ck_assert_int_eq(waitpid(child, NULL, 0), child);
}

START_TEST(qmp_bad)
{
        _cleanup_free_ char *reason = NULL;
        int pair[2];
        Qmp *q = NULL;

        refuse_monitor("", -ECONNRESET);
        refuse_monitor("QEMU 11.1.3 monitor - type 'help' for more information\n", -EBADMSG);
        refuse_monitor("{\"QMP\": {}}\n", -EBADMSG);
        refuse_monitor("[]\n", -EBADMSG);
        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        ck_assert_int_eq(luv_qmp_open(&pair[0], luv_now_usec() + 20 * USEC_PER_MSEC, &q, &reason),
                         -ETIMEDOUT);
        close(pair[1]);
        free(reason);
        reason = NULL;
        ck_assert_int_eq(luv_qemu_monitor("/nowhere/at/all", soon(), &q, &reason), -ENOENT);
        ck_assert_ptr_nonnull(strstr(reason, "/nowhere/at/all"));
}
END_TEST

/* -- processes -- */

static int note_refused(const QemuProcess *process, bool whole, void *userdata)
{
        return -EIO;
}

static int note_killed(const QemuProcess *process, bool whole, void *userdata)
{
        (void) raise(SIGKILL);
        return 0;
}

/* Neither a program that cannot be noted is executed, nor one whose starter is killed before it is. */
START_TEST(not_noted)
{
        _cleanup_free_ char *reason = NULL;
        QemuProcess process = QEMU_PROCESS_NULL;
        char *argv[] = { "/bin/sh", "-c", "echo executed", NULL };
        QemuStart start = { .argv = argv, .monitor_fd = -EBADF, .cpr_fd = -EBADF, .main_fd = -EBADF };
        char said[16];
        int out[2], saved;
        pid_t pid;

        ck_assert_int_eq(pipe(out), 0);
        saved = dup(STDOUT_FILENO);
        start.monitor_fd = dup(out[1]);
        ck_assert_int_ge(dup2(out[1], STDOUT_FILENO), 0);
        start.note = note_refused;
        ck_assert_int_eq(luv_qemu_start(&start, &process, &reason), -EIO);
        ck_assert_ptr_nonnull(strstr(reason, "cannot be noted"));
        pid = fork();
        if (pid == 0) {
                start.note = note_killed;
                _exit(luv_qemu_start(&start, &process, NULL) < 0);
        }
        ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
        ck_assert_int_ge(dup2(saved, STDOUT_FILENO), 0);
        close(saved);
        close(start.monitor_fd);
        close(out[1]);
        /* All who could have written are gone then. */
        ck_assert_int_eq(read(out[0], said, sizeof(said)), 0);
        close(out[0]);
}
END_TEST

START_TEST(process)
{
        _cleanup_(luv_qemu_process_done) QemuProcess p = QEMU_PROCESS_NULL, seen = QEMU_PROCESS_NULL;
        char *const argv[] = { (char *) "sleep", (char *) "1000", NULL };
        _cleanup_(luv_qemu_files_done) QemuFiles files = {};
        _cleanup_free_ char *reason = NULL;
        _cleanup_close_ int monitor_fd = -EBADF, memory = new_memfd();
        char *const missing[] = { (char *) "/nowhere/at/all", NULL };
        int pair[2];

        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        monitor_fd = pair[0];
        close(pair[1]);
        ck_assert_int_eq(ftruncate(memory, 4096), 0);
        ck_assert_int_eq(fcntl(memory, F_SETFD, 0), 0);
        ck_assert_int_eq(luv_qemu_start(&(QemuStart) { .argv = missing,
                                                       .monitor_fd = monitor_fd,
                                                       .cpr_fd = -EBADF,
                                                       .main_fd = -EBADF },
                                        &p, &reason),
                         -ENOENT);
        ck_assert_ptr_nonnull(strstr(reason, "/nowhere/at/all"));
        /* It does not like its options, so it has to be one that looks at none of them. */
        ck_assert_int_eq(luv_qemu_start(&(QemuStart) { .argv = (char *const[]) { (char *) "sh",
                                                                                 (char *) "-c",
                                                                                 (char *) "exec sleep 1000",
                                                                                 NULL },
                                                       .cwd = "/",
                                                       .monitor_fd = monitor_fd,
                                                       .cpr_fd = -EBADF,
                                                       .main_fd = -EBADF },
                                        &p, &reason),
                         0);
        /* The shell becomes it in its own time. */
        for (unsigned i = 0; i < 500; i++) {
                ck_assert_int_eq(luv_qemu_process_open(p.pid, &seen), 0);
                if (streq(seen.argv[0], "sleep"))
                        break;
                luv_qemu_process_done(&seen);
                (void) usleep(10000);
        }
        ck_assert_ptr_nonnull(seen.argv);
        ck_assert_str_eq(seen.argv[0], argv[0]);
        ck_assert_str_eq(seen.argv[1], argv[1]);
        ck_assert_str_eq(seen.cwd, "/");
        ck_assert_int_eq(luv_qemu_process_files(&seen, &files), 0);
        ck_assert_uint_eq(files.n, 1);
        ck_assert_int_eq(luv_fd_same(files.items[0].fd, memory), 1);
        ck_assert(!luv_qemu_process_is_stopped(&seen));
        ck_assert_int_eq(luv_qemu_process_signal(&seen, SIGSTOP), 0);
        ck_assert_int_eq(waitid(P_PID, (id_t) p.pid, &(siginfo_t) {}, WSTOPPED | WNOWAIT), 0);
        ck_assert(luv_qemu_process_is_stopped(&seen));
        ck_assert_int_eq(luv_qemu_process_kill(&seen, soon()), 0);
        ck_assert_int_eq(luv_qemu_process_signal(&seen, 0), -ESRCH);
        luv_qemu_process_done(&seen);
        ck_assert_int_eq(luv_qemu_process_open(p.pid, &seen), -ESRCH);
}
END_TEST

int main(void)
{
        Suite *s = suite_create("agents");
        TCase *tc = tcase_create("agents");
        SRunner *sr;
        int failed;

        tcase_set_timeout(tc, 60);
        tcase_add_test(tc, cpr_there_and_back);
        tcase_add_test(tc, cpr_parse);
        tcase_add_test(tc, cpr_timeout);
        tcase_add_test(tc, document);
        tcase_add_test(tc, document_bad);
        tcase_add_test(tc, configuration);
        tcase_add_test(tc, argv_clean);
        tcase_add_test(tc, wired);
        tcase_add_test(tc, reset);
        tcase_add_test(tc, qmp);
        tcase_add_test(tc, qmp_last_words);
        tcase_add_test(tc, qmp_bad);
        tcase_add_test(tc, not_noted);
        tcase_add_test(tc, process);
        suite_add_tcase(s, tc);
        sr = srunner_create(s);
        srunner_set_tap(sr, "-");
        srunner_run_all(sr, CK_SILENT);
        failed = srunner_ntests_failed(sr);
        srunner_free(sr);
        return failed > 0;
}
