/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The plugin, with the plugin host's callbacks, on a made-up sysfs. */

#include <check.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <systemd/sd-json.h>

#include "plugin-host/host-plugin.h"
#include "util/io.h"
#include "util/string-util.h"
#include "util/time-util.h"

#define DEVICE "0000:03:00.0"
#define PORT "0000:00:1c.0"
#define TIMEOUT (10 * USEC_PER_SEC)

#define MSI 0x50u
#define MSIX 0x70u
#define EXPRESS 0xa0u
#define SERIAL 0x140u

static char root[64];
static unsigned char config[4096], port_config[256];
static pid_t kernel_pid;
/* What the kernel says that it preserves of the device. */
static uint64_t preserved;

static char *in_root(const char *path)
{
        char *s = luv_strf("%s/%s", root, path);

        ck_assert_ptr_nonnull(s);
        return s;
}

static void make_folder(const char *path)
{
        _cleanup_free_ char *p = in_root(path);

        for (char *slash = p + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
                *slash = 0;
                (void) mkdir(p, 0755);
                *slash = '/';
        }
        ck_assert(mkdir(p, 0755) >= 0 || errno == EEXIST);
}

static void put(const char *path, const char *text)
{
        _cleanup_free_ char *p = in_root(path);
        _cleanup_close_ int fd = open(p, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

        ck_assert_msg(fd >= 0, "%s", p);
        ck_assert_int_eq(luv_write_all(fd, text, strlen(text)), 0);
}

#define IN_DEVICE(name) "bus/pci/devices/" DEVICE "/" name

/* What is in a file, without the newline. */
static char *got(const char *path)
{
        _cleanup_free_ char *p = in_root(path);
        char *text = NULL;

        ck_assert_int_eq(luv_read_line_file(AT_FDCWD, p, &text), 0);
        return text;
}

static void check_file(const char *path, const char *expected)
{
        _cleanup_free_ char *text = got(path);

        ck_assert_str_eq(text, expected);
}

static void link_to(const char *path, const char *target)
{
        _cleanup_free_ char *p = in_root(path);

        (void) unlink(p);
        if (target)
                ck_assert_int_eq(symlink(target, p), 0);
}

static void set16(unsigned char *c, unsigned offset, unsigned v)
{
        c[offset] = v & 0xff;
        c[offset + 1] = (v >> 8) & 0xff;
}

static void write_config(void)
{
        _cleanup_free_ char *device = in_root(IN_DEVICE("config"));
        _cleanup_free_ char *port = in_root("bus/pci/devices/" PORT "/config");

        ck_assert_int_eq(luv_write_file_atomic(AT_FDCWD, device, config, sizeof(config), 0644), 0);
        ck_assert_int_eq(luv_write_file_atomic(AT_FDCWD, port, port_config, sizeof(port_config), 0644), 0);
}

/* With a capability list of MSI, MSI-X and PCI Express, and a serial number. */
static void make_config(void)
{
        memset(config, 0, sizeof(config));
        set16(config, 0x00, 0x8086);
        set16(config, 0x02, 0x10c9);
        set16(config, 0x04, 0x0406);
        set16(config, 0x06, 0x0010);
        config[0x34] = MSI;
        config[MSI] = 0x05;
        config[MSI + 1] = MSIX;
        config[MSIX] = 0x11;
        config[MSIX + 1] = EXPRESS;
        config[EXPRESS] = 0x10;
        set16(config, 0x100, 0x0001);
        set16(config, 0x102, SERIAL << 4 | 1);
        set16(config, SERIAL, 0x0003);
        set16(config, SERIAL + 2, 1);
        set16(config, SERIAL + 4, 0xbeef);
        set16(config, SERIAL + 10, 0xdead);

        memset(port_config, 0, sizeof(port_config));
        set16(port_config, 0x00, 0x8086);
        set16(port_config, 0x02, 0x3420);
        set16(port_config, 0x06, 0x0010);
        port_config[0x34] = EXPRESS;
        port_config[EXPRESS] = 0x10;
}

static void set_driver(const char *driver)
{
        _cleanup_free_ char *target = luv_strf("../../../../bus/pci/drivers/%s", strempty(driver)),
                            *dev = NULL;

        link_to(IN_DEVICE("driver"), driver ? target : NULL);
        dev = in_root(IN_DEVICE("vfio-dev"));
        if (driver && streq(driver, "vfio-pci"))
                make_folder(IN_DEVICE("vfio-dev"));
        else
                (void) rmdir(dev);
}

static void setup(void)
{
        preserved = UINT64_MAX;
        strcpy(root, "/tmp/luvfio-test-vfio-pci.XXXXXX");
        ck_assert_ptr_nonnull(mkdtemp(root));
        make_folder("devices/pci0000:00/" PORT "/" DEVICE "/liveupdate");
        make_folder("bus/pci/devices");
        make_folder("bus/pci/drivers/vfio-pci");
        make_folder("bus/pci/drivers/igb");
        make_folder("kernel/liveupdate");
        make_folder("kernel/irq/16");
        make_folder("kernel/irq/24");
        link_to("bus/pci/devices/" DEVICE, "../../../devices/pci0000:00/" PORT "/" DEVICE);
        link_to("bus/pci/devices/" PORT, "../../../devices/pci0000:00/" PORT);
        put("bus/pci/drivers/vfio-pci/bind", "");
        put("bus/pci/drivers/vfio-pci/unbind", "");
        put("bus/pci/drivers/igb/bind", "");
        put("bus/pci/drivers/igb/unbind", "");
        put("bus/pci/drivers_probe", "");
        put("kernel/liveupdate/abi",
            "luo luo-v6 rw\nfile memfd-v2 rw\nfile vfio-pci-cdev-v1 rw\nflb pci-v1 rw\n");
        put("kernel/irq/16/actions", "ehci_hcd:usb1,vfio-intx(0000:04:00.0)\n");
        put("kernel/irq/24/actions", "\n");
        put(IN_DEVICE("vendor"), "0x8086\n");
        put(IN_DEVICE("device"), "0x10c9\n");
        put(IN_DEVICE("subsystem_vendor"), "0x8086\n");
        put(IN_DEVICE("subsystem_device"), "0xa02b\n");
        put(IN_DEVICE("class"), "0x020000\n");
        put(IN_DEVICE("revision"), "0x01\n");
        put(IN_DEVICE("irq"), "16\n");
        put(IN_DEVICE("driver_override"), "vfio-pci\n");
        put(IN_DEVICE("reset_method"), "flr bus\n");
        put(IN_DEVICE("reset"), "");
        put(IN_DEVICE("sriov_numvfs"), "0\n");
        put(IN_DEVICE("liveupdate/state"), "none\n");
        put(IN_DEVICE("liveupdate/handler"), "\n");
        put(IN_DEVICE("liveupdate/blocked_by"), "\n");
        put(IN_DEVICE("resource"), "0x00000000fe800000 0x00000000fe81ffff 0x0000000000040200\n"
                                   "0x00000000fe820000 0x00000000fe83ffff 0x0000000000040200\n"
                                   "0x000000000000c000 0x000000000000c01f 0x0000000000040101\n"
                                   "0x00000000fe840000 0x00000000fe843fff 0x0000000000140204\n"
                                   "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
                                   "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
                                   "0x0000000000000000 0x0000000000000000 0x0000000000000000\n");
        make_config();
        write_config();
        set_driver("vfio-pci");
}

static void teardown(void)
{
        _cleanup_free_ char *command = luv_strf("rm -rf '%s'", root);

        if (kernel_pid > 0) {
                (void) kill(kernel_pid, SIGKILL);
                (void) waitpid(kernel_pid, NULL, 0);
                kernel_pid = 0;
        }
        ck_assert_int_eq(system(command), 0);
}

/* What is done in the new kernel, too late to be seen by a plugin that does not wait. */
static void kernel_act(const char *file, const char *driver)
{
        _cleanup_free_ char *p = in_root(file), *address = NULL;

        if (luv_read_line_file(AT_FDCWD, p, &address) < 0 || !streq(address, DEVICE))
                return;
        (void) usleep(20 * 1000);
        set_driver(driver);
}

static void start_kernel(void)
{
        static const struct {
                const char *file, *driver;
        } files[] = {
                { "bus/pci/drivers/vfio-pci/bind", "vfio-pci" },
                { "bus/pci/drivers/vfio-pci/unbind", NULL },
                { "bus/pci/drivers/igb/unbind", NULL },
        };
        int fd = inotify_init1(IN_CLOEXEC), watches[ELEMENTSOF(files)];
        pid_t parent = getpid();

        ck_assert_int_ge(fd, 0);
        for (size_t i = 0; i < ELEMENTSOF(files); i++) {
                _cleanup_free_ char *p = in_root(files[i].file);

                watches[i] = inotify_add_watch(fd, p, IN_CLOSE_WRITE);
                ck_assert_int_ge(watches[i], 0);
        }
        kernel_pid = fork();
        ck_assert_int_ge(kernel_pid, 0);
        if (kernel_pid == 0) {
                (void) prctl(PR_SET_PDEATHSIG, SIGKILL);
                while (getppid() == parent) {
                        _Alignas(struct inotify_event) char buffer[4096];
                        ssize_t n = read(fd, buffer, sizeof(buffer));

                        for (char *p = buffer; n > 0 && p < buffer + n;) {
                                struct inotify_event *e = (struct inotify_event *) p;

                                for (size_t i = 0; i < ELEMENTSOF(files); i++)
                                        if (watches[i] == e->wd && (e->mask & IN_CLOSE_WRITE))
                                                kernel_act(files[i].file, files[i].driver);
                                p += sizeof(*e) + e->len;
                        }
                }
                _exit(EXIT_SUCCESS);
        }
        (void) close(fd);
}

/* What an operation answered. */
typedef struct Answer {
        sd_json_variant *json, *ok;
        const char *failed;
} Answer;

static void answer_done(Answer *a)
{
        sd_json_variant_unref(a->json);
}
#define _cleanup_answer_ _cleanup_(answer_done)

static Answer run(HostOp op, const char *plan)
{
        const HostOptions options = { .plugin = "vfio-pci", .sysfs = root };
        _cleanup_(luv_host_device_freep) struct luvfio_device *d = NULL;
        _cleanup_free_ char *text = NULL;
        sd_json_variant *v;
        Answer a = {};

        ck_assert_int_eq(luv_host_device_new(&options, DEVICE, preserved, luv_now_usec() + TIMEOUT, &d), 0);
        ck_assert_int_eq(luv_host_plugin_run(&luvfio_plugin_v1, op, d, plan, &text), 0);
        ck_assert_int_ge(sd_json_parse(text, 0, &a.json, NULL, NULL), 0);
        a.ok = sd_json_variant_by_key(a.json, "ok");
        v = sd_json_variant_by_key(a.json, "failed");
        a.failed = v ? sd_json_variant_string(v) : NULL;
        ck_assert((a.ok != NULL) != (a.failed != NULL));
        return a;
}

static void succeeds(HostOp op, const char *plan)
{
        _cleanup_answer_ Answer a = run(op, plan);

        ck_assert_msg(a.ok != NULL, "%s", strempty(a.failed));
}

/* With each of the words in the reason. */
static void fails(HostOp op, const char *plan, const char *const *words)
{
        _cleanup_answer_ Answer a = run(op, plan);

        ck_assert(a.failed != NULL);
        for (; *words; words++)
                ck_assert_msg(strstr(a.failed, *words) != NULL, "no \"%s\" in \"%s\"", *words, a.failed);
}
#define FAILS(op, plan, ...) fails((op), (plan), (const char *const[]) { __VA_ARGS__, NULL })

static int64_t score(void)
{
        _cleanup_answer_ Answer a = run(HOST_OP_MATCH, NULL);

        ck_assert_ptr_nonnull(a.ok);
        return sd_json_variant_integer(sd_json_variant_by_key(a.ok, "score"));
}

/* "SEVERITY:ID" of each finding, in order, with blanks between. */
static char *findings(void)
{
        _cleanup_answer_ Answer a = run(HOST_OP_PREFLIGHT, NULL);
        sd_json_variant *list;
        char *all = strdup("");

        ck_assert_msg(a.ok != NULL, "%s", strempty(a.failed));
        list = sd_json_variant_by_key(a.ok, "findings");
        for (size_t i = 0; i < sd_json_variant_elements(list); i++) {
                sd_json_variant *e = sd_json_variant_by_index(list, i);
                char *longer = luv_strf("%s%s%s:%s", all, i > 0 ? " " : "",
                                        sd_json_variant_string(sd_json_variant_by_key(e, "severity")),
                                        sd_json_variant_string(sd_json_variant_by_key(e, "id")));

                free(all);
                all = longer;
        }
        return all;
}

static void check_findings(const char *expected)
{
        _cleanup_free_ char *all = findings();

        ck_assert_str_eq(all, expected);
}

static char *first_message(void)
{
        _cleanup_answer_ Answer a = run(HOST_OP_PREFLIGHT, NULL);
        sd_json_variant *list = sd_json_variant_by_key(a.ok, "findings");

        ck_assert_uint_gt(sd_json_variant_elements(list), 0);
        return strdup(sd_json_variant_string(
                        sd_json_variant_by_key(sd_json_variant_by_index(list, 0), "message")));
}

static char *make_plan(void)
{
        _cleanup_answer_ Answer a = run(HOST_OP_PLAN, NULL);

        ck_assert_msg(a.ok != NULL, "%s", strempty(a.failed));
        return strdup(sd_json_variant_string(sd_json_variant_by_key(a.ok, "plan")));
}

START_TEST(match)
{
        _cleanup_answer_ Answer a = run(HOST_OP_MATCH, NULL);

        ck_assert_str_eq(sd_json_variant_string(sd_json_variant_by_key(a.ok, "promise")), "reset");
        ck_assert_int_eq(score(), 1);
        set_driver("igb");
        ck_assert_int_eq(score(), 0);
        set_driver(NULL);
        ck_assert_int_eq(score(), 0);
        /* a vendor's driver of VFIO's family */
        set_driver("igb");
        make_folder(IN_DEVICE("vfio-dev"));
        ck_assert_int_eq(score(), 1);
}
END_TEST

/* The promise follows the kernel's word. */
START_TEST(promises)
{
        static const struct {
                uint64_t preserved;
                const char *promise;
        } words[] = {
                { UINT64_MAX, "reset" },
                { 0, "reset" },
                { LUVFIO_PRESERVED_OWNER, "reset" },
                { LUVFIO_PRESERVED_OWNER | LUVFIO_PRESERVED_STATE, "reset" },
                { LUVFIO_PRESERVED_OWNER | LUVFIO_PRESERVED_DMA | LUVFIO_PRESERVED_IOMMU, "reset" },
                { LUVFIO_PRESERVED_OWNER | LUVFIO_PRESERVED_STATE | LUVFIO_PRESERVED_DMA, "running" },
                { LUVFIO_PRESERVED_STATE | LUVFIO_PRESERVED_DMA | UINT64_C(1) << 40, "running" },
                { LUVFIO_PRESERVED_OWNER | LUVFIO_PRESERVED_INTERRUPTS, "reset" },
                { LUVFIO_PRESERVED_STATE | LUVFIO_PRESERVED_DMA | LUVFIO_PRESERVED_INTERRUPTS, "latched" },
        };
        _cleanup_free_ char *plan = NULL, *part = luv_strf("\"promise\":\"%s\"", words[_i].promise);
        _cleanup_answer_ Answer a = {};

        preserved = words[_i].preserved;
        a = run(HOST_OP_MATCH, NULL);
        ck_assert_str_eq(sd_json_variant_string(sd_json_variant_by_key(a.ok, "promise")), words[_i].promise);
        plan = make_plan();
        ck_assert_ptr_nonnull(strstr(plan, part));
        check_findings(streq(words[_i].promise, "reset")     ? "note:device-reset"
                       : streq(words[_i].promise, "running") ? "note:interrupts-off"
                                                             : "note:interrupts-latched");
}
END_TEST

START_TEST(why_it_is_reset)
{
        _cleanup_free_ char *before = NULL, *behind = NULL;

        before = first_message();
        ck_assert_str_eq(before, "this kernel does not keep it running");
        link_to(IN_DEVICE("iommu_group"), "../../../../kernel/iommu_groups/3");
        preserved = LUVFIO_PRESERVED_OWNER;
        behind = first_message();
        ck_assert_str_eq(behind, "this kernel does not preserve it together with its iommufd");
}
END_TEST

START_TEST(preflight)
{
        check_findings("note:device-reset");

        set_driver("igb");
        check_findings("blocker:driver-not-vfio-pci note:device-reset");
        set_driver(NULL);
        check_findings("blocker:driver-not-vfio-pci note:device-reset");
        set_driver("vfio-pci");

        put(IN_DEVICE("reset_method"), "\n");
        put(IN_DEVICE("sriov_numvfs"), "2\n");
        check_findings("note:device-reset blocker:sriov-pf warning:no-reset");
        put(IN_DEVICE("sriov_numvfs"), "0\n");
        put(IN_DEVICE("reset_method"), "flr\n");
        link_to(IN_DEVICE("physfn"), "../0000:02:00.0");
        check_findings("note:device-reset blocker:sriov-vf");
}
END_TEST

START_TEST(preflight_kernel)
{
        _cleanup_free_ char *state = in_root(IN_DEVICE("liveupdate/state"));

        put("kernel/liveupdate/abi", "file vfio-pci-cdev-v1 r\nfile vfio-pci-cdev-v99 rw\n");
        check_findings("blocker:kernel-no-vfio-pci");
        put("kernel/liveupdate/abi", "nonsense\n\n  \nfile\nfile vfio-pci-cdev-v1 rw extra\n");
        check_findings("note:device-reset");
        put(IN_DEVICE("liveupdate/state"), "incoming\n");
        check_findings("blocker:device-incoming note:device-reset");
        ck_assert_int_eq(unlink(state), 0);
        check_findings("blocker:kernel-no-live-update");
}
END_TEST

START_TEST(preflight_hotplug)
{
        set16(port_config, EXPRESS + 0x1a, 0x0008);
        write_config();
        check_findings("note:device-reset"); /* no hotplug at this port */
        set16(port_config, EXPRESS + 0x14, 0x0040);
        write_config();
        check_findings("note:device-reset"); /* which the kernel does not handle */
        set16(port_config, EXPRESS + 0x18, 0x0020);
        write_config();
        check_findings("note:device-reset blocker:hotplug-pending");
        set16(port_config, EXPRESS + 0x1a, 0x0040);
        write_config();
        check_findings("note:device-reset");
}
END_TEST

START_TEST(quiesced)
{
        succeeds(HOST_OP_QUIESCED, NULL);
        /* without MSI-X and MSI, or without any capability */
        config[MSI + 1] = EXPRESS;
        write_config();
        succeeds(HOST_OP_QUIESCED, NULL);
        config[0x34] = 0;
        write_config();
        succeeds(HOST_OP_QUIESCED, NULL);
        set16(config, 0x06, 0);
        config[0x34] = 0x13; /* means nothing then */
        write_config();
        succeeds(HOST_OP_QUIESCED, NULL);
}
END_TEST

START_TEST(quiesced_msi)
{
        /* more bits around the one that counts */
        set16(config, MSI + 2, 0x0180);
        write_config();
        succeeds(HOST_OP_QUIESCED, NULL);
        set16(config, MSI + 2, 0x0181);
        write_config();
        FAILS(HOST_OP_QUIESCED, NULL, "its MSI interrupts are on");
}
END_TEST

START_TEST(quiesced_msix)
{
        set16(config, MSIX + 2, 0x4009);
        write_config();
        succeeds(HOST_OP_QUIESCED, NULL);
        set16(config, MSIX + 2, 0x8009);
        write_config();
        FAILS(HOST_OP_QUIESCED, NULL, "its MSI-X interrupts are on");
        /* with a function mask they are on all the same */
        set16(config, MSIX + 2, 0xc009);
        write_config();
        FAILS(HOST_OP_QUIESCED, NULL, "MSI-X");
}
END_TEST

START_TEST(quiesced_intx)
{
        /* DisINTx says nothing */
        set16(config, 0x04, 0x0406);
        write_config();
        succeeds(HOST_OP_QUIESCED, NULL);
        put("kernel/irq/16/actions", "ehci_hcd:usb1,vfio-intx(" DEVICE ")\n");
        FAILS(HOST_OP_QUIESCED, NULL, "its INTx interrupts are on", "vfio-intx(" DEVICE ")");
        set16(config, 0x04, 0x0006);
        write_config();
        FAILS(HOST_OP_QUIESCED, NULL, "INTx");
        /* A device without a line. */
        put(IN_DEVICE("irq"), "0\n");
        succeeds(HOST_OP_QUIESCED, NULL);
}
END_TEST

/* Held back is as good as off, if the kernel says that it will be delivered. */
START_TEST(quiesced_latched)
{
        preserved = LUVFIO_PRESERVED_STATE | LUVFIO_PRESERVED_DMA | LUVFIO_PRESERVED_INTERRUPTS;
        make_folder(IN_DEVICE("msi_irqs"));
        put(IN_DEVICE("msi_irqs/24"), "msix\n");
        put("kernel/irq/24/actions", "vfio-msix[0](" DEVICE ")\n");
        set16(config, MSIX + 2, 0x8009);
        write_config();
        FAILS(HOST_OP_QUIESCED, NULL, "its MSI-X interrupts are on");
        set16(config, MSIX + 2, 0xc009);
        write_config();
        succeeds(HOST_OP_QUIESCED, NULL);
        /* A handler, and nothing at the device that holds anything back. */
        set16(config, MSIX + 2, 0x4009);
        write_config();
        FAILS(HOST_OP_QUIESCED, NULL, "its MSI-X interrupts are on");

        /* Two vectors in use; each has to be masked. */
        put("kernel/irq/24/actions", "vfio-msi[0](" DEVICE ")\n");
        set16(config, MSI + 2, 0x0111);
        set16(config, MSI + 0x0c, 0x0001);
        write_config();
        FAILS(HOST_OP_QUIESCED, NULL, "its MSI interrupts are on");
        set16(config, MSI + 0x0c, 0x0003);
        write_config();
        succeeds(HOST_OP_QUIESCED, NULL);
        /* It has no mask. */
        set16(config, MSI + 2, 0x0011);
        write_config();
        FAILS(HOST_OP_QUIESCED, NULL, "its MSI interrupts are on");
        set16(config, MSI + 2, 0x0110);
        put("kernel/irq/24/actions", "\n");

        put("kernel/irq/16/actions", "vfio-intx(" DEVICE ")\n");
        set16(config, 0x04, 0x0006);
        write_config();
        FAILS(HOST_OP_QUIESCED, NULL, "its INTx interrupts are on");
        set16(config, 0x04, 0x0406);
        write_config();
        succeeds(HOST_OP_QUIESCED, NULL);
        preserved &= ~LUVFIO_PRESERVED_INTERRUPTS;
        FAILS(HOST_OP_QUIESCED, NULL, "its INTx interrupts are on");
}
END_TEST

START_TEST(quiesced_handlers)
{
        make_folder(IN_DEVICE("msi_irqs"));
        put(IN_DEVICE("msi_irqs/24"), "msix\n");
        succeeds(HOST_OP_QUIESCED, NULL);
        put("kernel/irq/24/actions", "vfio-msix[0](" DEVICE ")\n");
        FAILS(HOST_OP_QUIESCED, NULL, "its MSI-X interrupts are on");
        put("kernel/irq/24/actions", "vfio-msi[0](" DEVICE ")\n");
        FAILS(HOST_OP_QUIESCED, NULL, "its MSI interrupts are on");
        put("kernel/irq/16/actions", "vfio-intx(" DEVICE ")\n");
        FAILS(HOST_OP_QUIESCED, NULL, "its INTx, MSI interrupts are on");
        put("kernel/irq/16/actions", "\n");
        put("kernel/irq/24/actions", "eth0-TxRx-0\n");
        FAILS(HOST_OP_QUIESCED, NULL, "eth0-TxRx-0");
}
END_TEST

START_TEST(quiesced_cannot_be_told)
{
        _cleanup_free_ char *irqs = in_root("kernel/irq"), *away = in_root("kernel/away");

        ck_assert_int_eq(rename(irqs, away), 0);
        FAILS(HOST_OP_QUIESCED, NULL, "handlers cannot be read");
        ck_assert_int_eq(rename(away, irqs), 0);
        set_driver("igb");
        FAILS(HOST_OP_QUIESCED, NULL, "it has igb, not vfio-pci");
        set_driver(NULL);
        FAILS(HOST_OP_QUIESCED, NULL, "it has no driver, not vfio-pci");
}
END_TEST

/* What a device or a bad sysfs could show: never a success, never an endless loop. */
static const struct {
        unsigned offset, value;
} damage[] = {
        { 0x34, 0x20 },        /* into the header */
        { MSI + 1, MSI },      /* a loop of one */
        { EXPRESS + 1, MSI },  /* a loop of all */
        { MSIX + 1, 0x3c },    /* back into the header */
        { EXPRESS + 1, 0xf0 }, /* to a capability of id 0, and from there ... */
        { MSI, 0xff },         /* no capability has this id */
        { 0x00, 0xff },        /* with the next: no device answers */
};

START_TEST(damaged_capabilities)
{
        config[damage[_i].offset] = damage[_i].value & 0xff;
        config[0xf0 + 1] = 0xf4;
        config[0xf4 + 1] = 0xf0;
        if (damage[_i].offset == 0)
                config[1] = 0xff;
        write_config();
        if (damage[_i].offset == 0)
                FAILS(HOST_OP_QUIESCED, NULL, "does not answer");
        else
                FAILS(HOST_OP_QUIESCED, NULL, "list of capabilities is damaged");
        {
                _cleanup_answer_ Answer a = run(HOST_OP_PREFLIGHT, NULL);

                ck_assert_ptr_nonnull(a.failed);
        }
}
END_TEST

START_TEST(capability_at_the_end)
{
        /* The last place where one can be; its control register is just inside. */
        config[MSI + 1] = 0xfc;
        config[0xfc] = 0x11;
        set16(config, 0xfe, 0x8000);
        write_config();
        FAILS(HOST_OP_QUIESCED, NULL, "MSI-X");
}
END_TEST

START_TEST(short_config_space)
{
        _cleanup_free_ char *p = in_root(IN_DEVICE("config"));

        /* What a process without CAP_SYS_ADMIN is shown. */
        ck_assert_int_eq(truncate(p, 64), 0);
        FAILS(HOST_OP_QUIESCED, NULL, "configuration space cannot be read");
        /* Conventional PCI: there is no serial number. */
        write_config();
        ck_assert_int_eq(truncate(p, 256), 0);
        succeeds(HOST_OP_QUIESCED, NULL);
        free(make_plan());
}
END_TEST

START_TEST(extended_capabilities_in_a_loop)
{
        _cleanup_free_ char *plan = NULL;

        set16(config, SERIAL, 0x0019);
        set16(config, SERIAL + 2, 0x1001);
        write_config();
        plan = make_plan();
        ck_assert_ptr_nonnull(strstr(plan, "\"serial\":0"));
}
END_TEST

START_TEST(planned)
{
        _cleanup_free_ char *plan = make_plan();

        ck_assert_ptr_nonnull(strstr(plan, "\"promise\":\"reset\""));
        ck_assert_ptr_nonnull(strstr(plan, "\"driver\":\"vfio-pci\""));
        ck_assert_ptr_nonnull(strstr(plan, "\"handler\":\"vfio-pci-cdev-v1\""));
        ck_assert_ptr_nonnull(strstr(plan, "\"serial\":16045481047390994159")); /* dead0000 0000beef */
        ck_assert_ptr_nonnull(
                        strstr(plan, "\"index\":3,\"address\":4270063616,\"size\":16384,\"flags\":1049088"));
        ck_assert_uint_lt(strlen(plan), 2048);
        put("kernel/liveupdate/abi", "\n");
        FAILS(HOST_OP_PLAN, NULL, "no way to preserve");
}
END_TEST

static void new_kernel(const char *driver)
{
        put(IN_DEVICE("driver_override"), "(null)\n");
        put(IN_DEVICE("liveupdate/state"), "incoming\n");
        put(IN_DEVICE("liveupdate/handler"), "vfio-pci-cdev-v1\n");
        put(IN_DEVICE("liveupdate/blocked_by"), "session\n");
        set_driver(driver);
        start_kernel();
}

START_TEST(rebind)
{
        static const char *const drivers[] = { NULL, "vfio-pci", "igb" };
        _cleanup_free_ char *plan = make_plan(), *driver = in_root(IN_DEVICE("driver")), *target = NULL;

        new_kernel(drivers[_i]);
        succeeds(HOST_OP_REBIND, plan);
        check_file(IN_DEVICE("driver_override"), "vfio-pci");
        target = realpath(driver, NULL);
        ck_assert_str_eq(strrchr(target, '/'), "/vfio-pci");
        succeeds(HOST_OP_VERIFY, plan);
        /* again: nothing is to be done */
        succeeds(HOST_OP_REBIND, plan);
}
END_TEST

START_TEST(rebind_refuses)
{
        _cleanup_free_ char *plan = make_plan(), *link = in_root("bus/pci/devices/" DEVICE);
        _cleanup_free_ char *bind = in_root("bus/pci/drivers/vfio-pci/bind");

        new_kernel(NULL);
        put(IN_DEVICE("device"), "0x10ca\n");
        FAILS(HOST_OP_REBIND, plan, "another device", "8086:10ca", "8086:10c9");
        put(IN_DEVICE("device"), "0x10c9\n");
        config[SERIAL + 4] ^= 1;
        write_config();
        FAILS(HOST_OP_REBIND, plan, "same kind", "dead00000000beee", "dead00000000beef");
        /* it was not touched */
        check_file(IN_DEVICE("driver_override"), "(null)");
        config[SERIAL + 4] ^= 1;
        write_config();
        put(IN_DEVICE("liveupdate/blocked_by"), "identity\n");
        FAILS(HOST_OP_REBIND, plan, "the kernel blocks it", "bridge above it");
        FAILS(HOST_OP_VERIFY, plan, "the kernel blocks it", "bridge above it");
        check_file(IN_DEVICE("driver_override"), "(null)");
        put(IN_DEVICE("liveupdate/blocked_by"), "session\n");

        ck_assert_int_eq(unlink(bind), 0);
        FAILS(HOST_OP_REBIND, plan, "no driver vfio-pci");

        ck_assert_int_eq(unlink(link), 0);
        FAILS(HOST_OP_REBIND, plan, "not there any more");
        FAILS(HOST_OP_VERIFY, plan, "not there");
        succeeds(HOST_OP_RECOVER, plan);
}
END_TEST

START_TEST(device_comes_late)
{
        _cleanup_free_ char *plan = make_plan(), *link = in_root("bus/pci/devices/" DEVICE);
        pid_t pid;

        new_kernel(NULL);
        ck_assert_int_eq(unlink(link), 0);
        pid = fork();
        if (pid == 0) {
                (void) usleep(300 * 1000);
                link_to("bus/pci/devices/" DEVICE, "../../../devices/pci0000:00/" PORT "/" DEVICE);
                _exit(EXIT_SUCCESS);
        }
        succeeds(HOST_OP_REBIND, plan);
        (void) waitpid(pid, NULL, 0);
}
END_TEST

static char *replaced(const char *text, const char *from, const char *to)
{
        const char *p = strstr(text, from);

        ck_assert_ptr_nonnull(p);
        return luv_strf("%.*s%s%s", (int) (p - text), text, to, p + strlen(from));
}

START_TEST(promise_of_a_running_device)
{
        _cleanup_free_ char *plan = make_plan(), *running = replaced(plan, "\"reset\"", "\"running\"");

        new_kernel("vfio-pci");
        succeeds(HOST_OP_VERIFY, running);
        /* what is no matter after a reset */
        set16(config, 0x04, 0x0402);
        write_config();
        succeeds(HOST_OP_VERIFY, plan);
        FAILS(HOST_OP_VERIFY, running, "command register is 0x0402, it was 0x0406");
        make_config();
        write_config();
        {
                _cleanup_free_ char *moved = replaced(running, "4270063616", "4270063617");

                FAILS(HOST_OP_VERIFY, moved, "BAR 3 has moved");
        }
        set_driver("igb");
        FAILS(HOST_OP_REBIND, running, "igb has taken it");
}
END_TEST

START_TEST(verify_refuses)
{
        _cleanup_free_ char *plan = make_plan(),
                            *smaller = replaced(plan, "\"size\":16384", "\"size\":8192");
        _cleanup_free_ char *other = replaced(plan, "\"flags\":1049088", "\"flags\":512");

        new_kernel("vfio-pci");
        FAILS(HOST_OP_VERIFY, smaller, "BAR 3 has changed");
        FAILS(HOST_OP_VERIFY, other, "BAR 3 has changed");
        put(IN_DEVICE("liveupdate/state"), "none\n");
        FAILS(HOST_OP_VERIFY, plan, "does not hold it", "none");
        put(IN_DEVICE("liveupdate/state"), "incoming\n");
        put(IN_DEVICE("liveupdate/handler"), "else\n");
        FAILS(HOST_OP_VERIFY, plan, "else");
        set_driver("igb");
        FAILS(HOST_OP_VERIFY, plan, "it has igb");
}
END_TEST

START_TEST(damaged_plans)
{
        _cleanup_free_ char *plan = make_plan(),
                            *later = replaced(plan, "\"minReader\":1", "\"minReader\":2");
        _cleanup_free_ char *more = replaced(plan, "{", "{\"new\":[1,{}],");
        static const char *const bad[] = { "",
                                           "{}",
                                           "[]",
                                           "null",
                                           "7",
                                           "{\"minReader\":1}",
                                           "{\"minReader\":-1}",
                                           "{\"minReader\":1",
                                           "{\"minReader\":\"1\"}",
                                           "[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]" };
        static const char *const changes[][2] = {
                { "\"reset\"", "\"eternal\"" },          { "\"index\":3", "\"index\":6" },
                { "\"index\":3", "\"index\":2" },        { "\"command\":1030", "\"command\":65536" },
                { "\"revision\":1", "\"revision\":-1" }, { "\"bars\":[", "\"bars\":[7," },
                { "\"size\":16384", "\"size\":0" },      { "\"driver\"", "\"drivel\"" },
        };

        new_kernel("vfio-pci");
        for (size_t i = 0; i < ELEMENTSOF(bad); i++)
                FAILS(HOST_OP_VERIFY, bad[i], "plan is damaged");
        for (size_t i = 0; i < ELEMENTSOF(changes); i++) {
                _cleanup_free_ char *changed = replaced(plan, changes[i][0], changes[i][1]);

                FAILS(HOST_OP_VERIFY, changed, "plan is damaged");
                FAILS(HOST_OP_REBIND, changed, "plan is damaged");
        }
        for (size_t i = 0; i < strlen(plan); i++) {
                _cleanup_free_ char *cut = strndup(plan, i);

                FAILS(HOST_OP_VERIFY, cut, "plan is damaged");
        }
        FAILS(HOST_OP_VERIFY, later, "for version 2");
        succeeds(HOST_OP_VERIFY, more);
}
END_TEST

START_TEST(recover)
{
        _cleanup_free_ char *p = in_root(IN_DEVICE("config")), *driver = in_root(IN_DEVICE("driver"));
        uint64_t end = luv_now_usec() + TIMEOUT;
        int fd;

        new_kernel("vfio-pci");
        set16(config, MSI + 2, 0x0181);
        set16(config, MSIX + 2, 0x8009);
        set16(config, 0x04, 0x0007);
        write_config();
        /* It does not need the plan. */
        succeeds(HOST_OP_RECOVER, "nonsense");
        fd = open(p, O_RDONLY | O_CLOEXEC);
        ck_assert_int_eq(luv_pread_all(fd, config, sizeof(config), 0), 0);
        (void) close(fd);
        ck_assert_uint_eq(config[0x04] | config[0x05] << 8, 0x0403);
        ck_assert_uint_eq(config[MSI + 2], 0x80);
        ck_assert_uint_eq(config[MSIX + 3], 0x00);
        check_file(IN_DEVICE("reset"), "1");
        check_file(IN_DEVICE("driver_override"), "");
        while (access(driver, F_OK) >= 0)
                ck_assert(luv_now_usec() < end);
        succeeds(HOST_OP_RECOVER, "");
}
END_TEST

START_TEST(recover_leaves_others_alone)
{
        new_kernel("igb");
        succeeds(HOST_OP_RECOVER, "");
        check_file(IN_DEVICE("reset"), "");
        check_file(IN_DEVICE("driver_override"), "(null)");
}
END_TEST

/* The callbacks keep the plugin in its device's folder. */
START_TEST(callbacks)
{
        const HostOptions options = { .plugin = "vfio-pci", .sysfs = root };
        const struct luvfio_host *host = &luv_host_callbacks;
        _cleanup_(luv_host_device_freep) struct luvfio_device *d = NULL, *bad = NULL;
        char text[16];
        uint64_t begin;

        ck_assert_int_eq(luv_host_device_new(&options, "03:00.0", preserved, 0, &bad), -EINVAL);
        ck_assert_int_eq(luv_host_device_new(&options, "0000:03:00.0/../x", preserved, 0, &bad), -EINVAL);
        ck_assert_int_eq(luv_host_device_new(&options, DEVICE, preserved, luv_now_usec() + TIMEOUT, &d), 0);

        ck_assert_int_eq(host->attr_read(d, "vendor", text, sizeof(text)), 6);
        ck_assert_str_eq(text, "0x8086");
        ck_assert_int_eq(host->attr_read(d, "vendor", text, 7), -EFBIG);
        ck_assert_int_eq(host->attr_read(d, "vendor", text, 0), -EINVAL);
        ck_assert_int_eq(host->attr_read(d, "", text, sizeof(text)), -EINVAL);
        ck_assert_int_eq(host->attr_read(d, "nothing", text, sizeof(text)), -ENOENT);
        ck_assert_int_eq(host->attr_read(d, "../config", text, sizeof(text)), -EINVAL);
        ck_assert_int_eq(host->attr_read(d, "/etc/passwd", text, sizeof(text)), -EINVAL);
        ck_assert_int_eq(host->attr_read(d, "driver/bind", text, sizeof(text)), -EXDEV);
        ck_assert_int_eq(host->attr_write(d, "driver/unbind", DEVICE), -EXDEV);
        ck_assert_int_eq(host->attr_write(d, "nothing", "1"), -ENOENT);
        ck_assert_int_eq(host->kernel_read(d, "../bus/pci/drivers_probe", text, sizeof(text)), -EINVAL);
        ck_assert_int_eq(host->bind(d, "../../x"), -EINVAL);
        ck_assert_int_eq(host->bind(d, "no-such-driver"), -ENOENT);
        ck_assert_int_eq(host->driver_override(d, "a/b"), -EINVAL);
        ck_assert_int_eq(host->driver(d, text, 4), -EFBIG);
        ck_assert_int_eq(host->bridge_read(d, 0, 0, text, 2), -EINVAL);
        ck_assert_int_eq(host->bridge_read(d, 1, 2, text, 2), 0);
        ck_assert_uint_eq((unsigned char) text[0], 0x20);
        ck_assert_int_eq(host->bridge_read(d, 2, 0, text, 2), -ENOENT);
        ck_assert_int_eq(host->config_read(d, 4095, text, 2), -ENODATA);

        ck_assert_int_eq(host->attr_read(d, "driver", text, sizeof(text)), -EXDEV);
        ck_assert_int_eq(host->attr_read(d, "liveupdate", text, sizeof(text)), -EISDIR);
        ck_assert_int_eq(host->attr_read(d, "vendor/x", text, sizeof(text)), -ENOTDIR);
        ck_assert_int_eq(host->attr_read(d, "liveupdate/../vendor", text, sizeof(text)), -EINVAL);
        ck_assert_int_eq(host->attr_read(d, "liveupdate/state", text, sizeof(text)), 4);
        ck_assert_int_eq(host->wait_path(d, "../config", 0), -EINVAL);

        begin = luv_now_usec();
        ck_assert_int_eq(host->wait_path(d, "never", 100 * USEC_PER_MSEC), -ETIME);
        ck_assert_uint_ge(luv_now_usec() - begin, 100 * USEC_PER_MSEC);
        ck_assert_int_eq(host->wait_path(d, "vfio-dev", 0), 0);
        ck_assert_int_eq(host->wait_driver(d, "vfio-pci", 0), 0);
        /* never past the deadline */
        d->deadline = luv_now_usec() + 50 * USEC_PER_MSEC;
        ck_assert_int_eq(host->wait_driver(d, "igb", UINT64_MAX), -ETIME);
        ck_assert_uint_eq(host->time_left(d), 0);

        for (unsigned i = 0; i < LUVFIO_FINDINGS_MAX; i++)
                ck_assert_int_eq(host->add_finding(d, LUVFIO_NOTE, "x\n", NULL, "\x1b%u", i), 0);
        ck_assert_int_eq(host->add_finding(d, LUVFIO_NOTE, "x", NULL, "y"), -E2BIG);
        ck_assert_str_eq(d->findings[0].id, "x?");
        ck_assert_str_eq(d->findings[0].message, "?0");
        ck_assert_int_eq(host->set_reason(d, -EIO, "\xff\n%s", "a"), -EIO);
        ck_assert_str_eq(d->reason, "??a");
}
END_TEST

static Suite *suite(void)
{
        Suite *s = suite_create("vfio-pci");
        TCase *t = tcase_create("vfio-pci");

        tcase_add_checked_fixture(t, setup, teardown);
        tcase_set_timeout(t, 60);
        tcase_add_test(t, match);
        tcase_add_loop_test(t, promises, 0, 7);
        tcase_add_test(t, why_it_is_reset);
        tcase_add_test(t, preflight);
        tcase_add_test(t, preflight_kernel);
        tcase_add_test(t, preflight_hotplug);
        tcase_add_test(t, quiesced);
        tcase_add_test(t, quiesced_msi);
        tcase_add_test(t, quiesced_msix);
        tcase_add_test(t, quiesced_intx);
        tcase_add_test(t, quiesced_latched);
        tcase_add_test(t, quiesced_handlers);
        tcase_add_test(t, quiesced_cannot_be_told);
        tcase_add_loop_test(t, damaged_capabilities, 0, ELEMENTSOF(damage));
        tcase_add_test(t, capability_at_the_end);
        tcase_add_test(t, short_config_space);
        tcase_add_test(t, extended_capabilities_in_a_loop);
        tcase_add_test(t, planned);
        tcase_add_loop_test(t, rebind, 0, 3);
        tcase_add_test(t, rebind_refuses);
        tcase_add_test(t, device_comes_late);
        tcase_add_test(t, promise_of_a_running_device);
        tcase_add_test(t, verify_refuses);
        tcase_add_test(t, damaged_plans);
        tcase_add_test(t, recover);
        tcase_add_test(t, recover_leaves_others_alone);
        tcase_add_test(t, callbacks);
        suite_add_tcase(s, t);
        return s;
}

int main(void)
{
        SRunner *runner = srunner_create(suite());
        int failed;

        srunner_set_tap(runner, "-");
        srunner_run_all(runner, CK_SILENT);
        failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
