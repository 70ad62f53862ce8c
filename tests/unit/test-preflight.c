/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <check.h>

#include "preflight/preflight-processes.h"
#include "preflight/preflight.h"
#include "util/string-util.h"

#define ABI "memfd luo-v1 rw\n"

static char no_cmdline[] = "quiet", good_cmdline[] = "kho=on liveupdate=on intel_iommu=on", abi[] = ABI,
            release[] = "7.3.4-b";

/* A host on which nothing speaks against an update. */
static PreflightFacts good(void)
{
        return (PreflightFacts) {
                .kernel_given = true,
                .kernel = { .release = release, .abi = abi },
                .cmdline = good_cmdline,
                .running_abi = abi,
                .memory_available = UINT64_C(8) << 30,
                .memory_reserve = UINT64_C(1) << 30,
                .store_available = true,
                .store_max = 4096,
                .store_needed = 2,
                .history_free = UINT64_C(1) << 30,
                .n_iommu_groups = 3,
        };
}

static PreflightMachine good_machine(void)
{
        return (PreflightMachine) {
                .name = (char *) "vm1",
                .unit = (char *) "vm1.service",
                .state = MACHINE_RUNNING,
                .attached = true,
                .alive = true,
                .in_control_group = true,
                .n_fds = 1,
                .n_memfds = 1,
                .headroom = UINT64_MAX,
                .survives = 1,
        };
}

static Findings judge(const PreflightFacts *f)
{
        Findings r = {};

        luv_preflight_judge(f, &r);
        return r;
}

/* One finding of this id, with this severity, machine and device; it says something and, if it blocks, what
 * to do. */
static void expect(const PreflightFacts *f, const char *id, Severity severity, const char *machine,
                   const char *device)
{
        Findings r = judge(f);
        size_t n = 0;

        for (size_t i = 0; i < r.n; i++) {
                const Finding *x = r.items + i;

                if (!streq(x->id, id))
                        continue;
                n++;
                ck_assert_int_eq(x->severity, severity);
                ck_assert(streq_ptr(x->machine, machine));
                ck_assert(streq_ptr(x->device, device));
                ck_assert_uint_gt(strlen(x->message), 10);
                ck_assert(!machine || strstr(x->message, machine));
                ck_assert(!device || strstr(x->message, device));
        }
        ck_assert_msg(n == 1, "%zu findings %s", n, id);
        ck_assert_int_eq(luv_findings_blockers(&r), severity == SEVERITY_BLOCKER);
        luv_findings_done(&r);
}

static const Finding *find(const Findings *r, const char *id)
{
        for (size_t i = 0; i < r->n; i++)
                if (streq(r->items[i].id, id))
                        return r->items + i;
        return NULL;
}

static void expect_not(const PreflightFacts *f, const char *id)
{
        Findings r = judge(f);

        ck_assert_ptr_null(find(&r, id));
        luv_findings_done(&r);
}

START_TEST(nothing_wrong)
{
        PreflightFacts f = good();
        PreflightMachine m = good_machine();
        Findings r;

        f.machines = &m;
        f.n_machines = 1;
        r = judge(&f);
        ck_assert_uint_eq(r.n, 0);
        luv_findings_done(&r);
}
END_TEST

START_TEST(luo)
{
        PreflightFacts f = good();

        f.luo = -ENOENT;
        expect(&f, "luo-missing", SEVERITY_BLOCKER, NULL, NULL);
        f.luo = -EBUSY;
        expect(&f, "luo-busy", SEVERITY_BLOCKER, NULL, NULL);
        f.luo = -EIO;
        expect(&f, "luo-damaged", SEVERITY_BLOCKER, NULL, NULL);
        f.luo = -EPERM;
        expect(&f, "luo-unusable", SEVERITY_BLOCKER, NULL, NULL);
}
END_TEST

START_TEST(kernel)
{
        PreflightFacts f = good();

        f.kernel_given = false;
        expect(&f, "kernel-not-given", SEVERITY_NOTE, NULL, NULL);
        f = good();
        f.kernel_error = -ENOEXEC;
        f.kernel_reason = (char *) "it begins with nonsense";
        expect(&f, "kernel-invalid", SEVERITY_BLOCKER, NULL, NULL);
        f = good();
        f.initrd_reason = (char *) "it is empty";
        expect(&f, "initrd-invalid", SEVERITY_BLOCKER, NULL, NULL);
        f = good();
        f.cmdline = no_cmdline;
        expect(&f, "cmdline-unfit", SEVERITY_BLOCKER, NULL, NULL);
        f = good();
        f.kernel.abi = NULL;
        expect(&f, "kernel-no-liveupdate", SEVERITY_BLOCKER, NULL, NULL);
        f = good();
        f.running_abi = NULL;
        expect(&f, "abi-unknown", SEVERITY_BLOCKER, NULL, NULL);
        f = good();
        f.kernel.abi = (char *) "memfd luo-v2 rw\n";
        expect(&f, "abi-incompatible", SEVERITY_BLOCKER, NULL, NULL);
        f = good();
        f.kexec_loaded = 1;
        expect(&f, "kexec-loaded", SEVERITY_BLOCKER, NULL, NULL);
        f.kexec_loaded = -ENOENT;
        expect(&f, "kexec-unusable", SEVERITY_BLOCKER, NULL, NULL);
}
END_TEST

/* What is staged was looked at. */
START_TEST(staged)
{
        PreflightFacts f = good();
        Findings r;

        f.kernel_staged = true;
        f.kernel_given = false;
        f.kexec_loaded = 1;
        f.running_abi = NULL;
        r = judge(&f);
        ck_assert_uint_eq(r.n, 0);
        luv_findings_done(&r);
}
END_TEST

START_TEST(memory)
{
        PreflightFacts f = good();
        PreflightMachine m[2] = { good_machine(), good_machine() };

        f.machines = m;
        f.n_machines = 2;
        m[1].name = (char *) "vm2";
        m[0].holes = m[1].holes = UINT64_C(7) << 29;
        luv_findings_done(&(Findings) {});
        /* 7 GiB of holes, 7 GiB to be had. */
        {
                Findings r = judge(&f);

                ck_assert_uint_eq(r.n, 0);
                luv_findings_done(&r);
        }
        m[1].holes++;
        expect(&f, "memory-short", SEVERITY_BLOCKER, NULL, NULL);
        /* Less than the reserve is nothing. */
        f.memory_available = 1;
        expect(&f, "memory-short", SEVERITY_BLOCKER, NULL, NULL);
        f = good();
        f.machines = m;
        f.n_machines = 1;
        m[0].headroom = m[0].holes - 1;
        expect(&f, "memory-limit", SEVERITY_BLOCKER, "vm1", NULL);
}
END_TEST

START_TEST(machines)
{
        PreflightFacts f = good();
        PreflightMachine m = good_machine();

        f.machines = &m;
        f.n_machines = 1;
        m.attached = false;
        expect(&f, "machine-not-attached", SEVERITY_BLOCKER, "vm1", NULL);
        m = good_machine();
        m.alive = false;
        expect(&f, "machine-dead", SEVERITY_BLOCKER, "vm1", NULL);
        m = good_machine();
        m.state = MACHINE_STRANDED;
        expect(&f, "machine-stranded", SEVERITY_BLOCKER, "vm1", NULL);
        m = good_machine();
        m.state = MACHINE_ABORTING;
        expect(&f, "machine-not-running", SEVERITY_BLOCKER, "vm1", NULL);
        m = good_machine();
        m.n_memfds = 0;
        expect(&f, "machine-incomplete", SEVERITY_WARNING, "vm1", NULL);
        m = good_machine();
        m.n_missing = 1;
        expect(&f, "machine-incomplete", SEVERITY_WARNING, "vm1", NULL);
        m = good_machine();
        m.in_control_group = false;
        expect(&f, "machine-not-freezable", SEVERITY_BLOCKER, "vm1", NULL);
        m = good_machine();
        m.shares_control_group = true;
        expect(&f, "machine-not-freezable", SEVERITY_BLOCKER, "vm1", NULL);
        m = good_machine();
        m.blockers = &(MachineBlocker) { .message = (char *) "guest memory is in files" };
        m.n_blockers = 1;
        expect(&f, "machine-blocked", SEVERITY_BLOCKER, "vm1", NULL);
        m = good_machine();
        m.iommufd_blocker = (char *) "ioas 2 iova 0x1000-0x1fff: anonymous memory";
        expect(&f, "iommufd-blocked", SEVERITY_BLOCKER, "vm1", NULL);
        m = good_machine();
        m.survives = 0;
        expect(&f, "machine-not-drain-safe", SEVERITY_BLOCKER, "vm1", NULL);
        f = good();
        f.lost = (char *) "nobody knows which";
        expect(&f, "host-record-lost", SEVERITY_WARNING, NULL, NULL);
}
END_TEST

START_TEST(host)
{
        PreflightFacts f = good();
        PreflightProcess p = { .pid = 7, .name = (char *) "qemu", .holds = (char *) "KVM" };
        PreflightInhibitor i = { (char *) "backup", (char *) "it is at work" };
        char *stores[] = { (char *) "x.service", NULL };

        f.processes = &p;
        f.n_processes = 1;
        expect(&f, "process-unregistered", SEVERITY_BLOCKER, NULL, NULL);
        f = good();
        f.inhibitors = &i;
        f.n_inhibitors = 1;
        expect(&f, "inhibited", SEVERITY_BLOCKER, NULL, NULL);
        f = good();
        f.store_available = false;
        expect(&f, "fd-store-missing", SEVERITY_BLOCKER, NULL, NULL);
        f = good();
        f.store_needed = 4097;
        expect(&f, "fd-store-small", SEVERITY_BLOCKER, NULL, NULL);
        f = good();
        f.history_error = -EROFS;
        expect(&f, "history-unwritable", SEVERITY_WARNING, NULL, NULL);
        f = good();
        f.history_free = 1000;
        expect(&f, "history-disk-full", SEVERITY_WARNING, NULL, NULL);
        f = good();
        f.lost_stores = stores;
        expect(&f, "fd-store-lost", SEVERITY_WARNING, NULL, NULL);
        f = good();
        f.drain_target_missing = true;
        expect(&f, "drain-target-missing", SEVERITY_BLOCKER, NULL, NULL);
}
END_TEST

START_TEST(devices)
{
        PreflightFacts f = good();
        PreflightDevice d = { .machine = (char *) "vm1",
                              .address = (char *) "0000:00:04.0",
                              .preserved = FD_PRESERVED_UNKNOWN };
        Finding why = { .id = (char *) "device-reset", .message = (char *) "it is behind a wall" };
        Findings r;
        Finding own = { .id = (char *) "null-cable",
                        .severity = SEVERITY_BLOCKER,
                        .message = (char *) "the cable of 0000:00:04.0 in vm1 is loose",
                        .remedy = (char *) "plug it in" };

        f.devices = &d;
        f.n_devices = 1;
        expect(&f, "device-no-plugin", SEVERITY_BLOCKER, "vm1", "0000:00:04.0");
        d.plugin = (char *) "null";
        d.promise = (char *) "reset";
        expect(&f, "device-reset", SEVERITY_WARNING, "vm1", "0000:00:04.0");
        d.promise = (char *) "running";
        expect(&f, "device-promise", SEVERITY_BLOCKER, "vm1", "0000:00:04.0");
        d.preserved = 3;
        expect(&f, "device-promise", SEVERITY_BLOCKER, "vm1", "0000:00:04.0");
        d.preserved = 7;
        expect(&f, "device-preserved", SEVERITY_NOTE, "vm1", "0000:00:04.0");
        expect_not(&f, "device-promise");
        expect_not(&f, "device-reset");
        d.promise = (char *) "latched";
        expect(&f, "device-promise", SEVERITY_BLOCKER, "vm1", "0000:00:04.0");
        d.preserved = 7 | 16;
        expect_not(&f, "device-promise");
        /* Why it is reset is the plugin's to know. */
        d.promise = (char *) "reset";
        d.preserved = 1;
        d.findings = (Findings) { .items = &why, .n = 1 };
        r = judge(&f);
        ck_assert_str_eq(find(&r, "device-reset")->message,
                         "Device 0000:00:04.0 of machine vm1 will be reset on the way: it is behind a wall");
        ck_assert_str_eq(find(&r, "device-preserved")->message, "Of device 0000:00:04.0 of machine vm1 this "
                                                                "kernel preserves: owner; not: state, dma, "
                                                                "iommu, interrupts, sriov");
        luv_findings_done(&r);
        d.preserved = FD_PRESERVED_UNKNOWN;
        d.findings = (Findings) { .items = &own, .n = 1 };
        expect(&f, "null-cable", SEVERITY_BLOCKER, "vm1", "0000:00:04.0");
        d.findings = (Findings) {};
        d.reason = (char *) "it crashed";
        expect(&f, "plugin-failed", SEVERITY_BLOCKER, "vm1", "0000:00:04.0");
        d.reason = NULL;
        f.n_iommu_groups = 0;
        expect(&f, "iommu-off", SEVERITY_BLOCKER, NULL, NULL);
        /* no-IOMMU mode: nothing is as it should be, and nothing becomes worse */
        d.preserved = 7;
        expect(&f, "iommu-off", SEVERITY_BLOCKER, NULL, NULL);
        f.may_noiommu = true;
        expect(&f, "iommu-off", SEVERITY_WARNING, NULL, NULL);
}
END_TEST

/* None hides another, blockers come first. */
START_TEST(all_at_once)
{
        PreflightFacts f = good();
        PreflightMachine m = good_machine();
        char *sacrifice[] = { (char *) "vm1", NULL };
        Findings r;

        f.machines = &m;
        f.n_machines = 1;
        f.luo = -ENOENT;
        f.kexec_loaded = 1;
        f.history_free = 0;
        m.attached = false;
        m.survives = 0;
        r = judge(&f);
        ck_assert_uint_eq(r.n, 5);
        ck_assert_uint_eq(luv_findings_blockers(&r), 4);
        ck_assert_int_eq(r.items[4].severity, SEVERITY_WARNING);
        /* A machine that may be lost blocks nothing; the host still does. */
        luv_findings_sacrifice(&r, sacrifice);
        ck_assert_uint_eq(luv_findings_blockers(&r), 2);
        luv_findings_done(&r);
}
END_TEST

START_TEST(simulated)
{
        PreflightFacts f = good();
        PreflightMachine m = good_machine();
        Findings r;

        f.simulated = true;
        f.machines = &m;
        f.n_machines = 1;
        f.store_available = false;
        f.drain_target_missing = true;
        f.n_iommu_groups = 0;
        m.in_control_group = false;
        r = judge(&f);
        ck_assert_uint_eq(r.n, 0);
        luv_findings_done(&r);
}
END_TEST

START_TEST(units_of_cgroups)
{
        const char *cases[][2] = {
                { "/system.slice/x.service", "/system.slice/x.service" },
                { "/machine.slice/machine-qemu.scope/libvirt/vcpu0", "/machine.slice/machine-qemu.scope" },
                { "/user.slice/user-1.slice/user@1.service/app.slice/y.service/sub",
                  "/user.slice/user-1.slice/user@1.service/app.slice/y.service" },
                { "/nothing/of/it", "/nothing/of/it" },
                { "/", "/" },
        };

        for (size_t i = 0; i < ELEMENTSOF(cases); i++) {
                char *unit = luv_cgroup_of_unit(cases[i][0]);

                ck_assert_str_eq(unit, cases[i][1]);
                free(unit);
        }
}
END_TEST

START_TEST(severities)
{
        for (Severity s = 0; s < _SEVERITY_MAX; s++)
                ck_assert_int_eq(luv_severity_from_string(luv_severity_to_string(s)), s);
        ck_assert_int_lt(luv_severity_from_string("fatal"), 0);
}
END_TEST

int main(void)
{
        Suite *s = suite_create("preflight");
        TCase *c = tcase_create("preflight");
        SRunner *r;

        tcase_add_test(c, nothing_wrong);
        tcase_add_test(c, luo);
        tcase_add_test(c, kernel);
        tcase_add_test(c, staged);
        tcase_add_test(c, memory);
        tcase_add_test(c, machines);
        tcase_add_test(c, host);
        tcase_add_test(c, devices);
        tcase_add_test(c, all_at_once);
        tcase_add_test(c, simulated);
        tcase_add_test(c, units_of_cgroups);
        tcase_add_test(c, severities);
        suite_add_tcase(s, c);
        r = srunner_create(s);
        srunner_set_tap(r, "-");
        srunner_run_all(r, CK_SILENT);
        srunner_free(r);
        return 0;
}
