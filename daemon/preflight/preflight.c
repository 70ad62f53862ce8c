/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "preflight/preflight.h"
#include "util/string-util.h"

static void (*const checks[])(const PreflightFacts *f, Findings *r) = {
        luv_check_luo,      luv_check_kernel,   luv_check_cmdline,   luv_check_abi,        luv_check_loaded,
        luv_check_memory,   luv_check_machines, luv_check_processes, luv_check_inhibitors, luv_check_devices,
        luv_check_fd_store, luv_check_history,  luv_check_stores,    luv_check_drain,      luv_check_iommu,
};

void luv_preflight_judge(const PreflightFacts *f, Findings *findings)
{
        for (size_t i = 0; i < ELEMENTSOF(checks); i++)
                checks[i](f, findings);
        luv_findings_sort(findings);
}

int luv_preflight_add_inhibitor(PreflightFacts *f, const char *who, const char *why)
{
        PreflightInhibitor new = {}, *inhibitors;

        if (luv_free_and_strdup(&new.who, who) < 0 || luv_free_and_strdup(&new.why, why) < 0 ||
            !(inhibitors = reallocarray(f->inhibitors, f->n_inhibitors + 1, sizeof(PreflightInhibitor)))) {
                free(new.who);
                free(new.why);
                return -ENOMEM;
        }
        f->inhibitors = inhibitors;
        inhibitors[f->n_inhibitors++] = new;
        return 0;
}

void luv_preflight_facts_done(PreflightFacts *f)
{
        free(f->kernel_reason);
        luv_kexec_image_done(&f->kernel);
        free(f->initrd_reason);
        free(f->cmdline);
        free(f->running_abi);
        free(f->lost);
        for (size_t i = 0; i < f->n_machines; i++) {
                free(f->machines[i].name);
                free(f->machines[i].unit);
                free(f->machines[i].reason);
                free(f->machines[i].iommufd_blocker);
                luv_machine_blockers_free(f->machines[i].blockers, f->machines[i].n_blockers);
        }
        free(f->machines);
        for (size_t i = 0; i < f->n_devices; i++) {
                PreflightDevice *d = f->devices + i;

                free(d->machine);
                free(d->address);
                free(d->plugin);
                free(d->promise);
                free(d->reason);
                luv_findings_done(&d->findings);
        }
        free(f->devices);
        for (size_t i = 0; i < f->n_processes; i++) {
                free(f->processes[i].name);
                free(f->processes[i].unit);
                free(f->processes[i].holds);
        }
        free(f->processes);
        for (size_t i = 0; i < f->n_inhibitors; i++) {
                free(f->inhibitors[i].who);
                free(f->inhibitors[i].why);
        }
        free(f->inhibitors);
        luv_strv_free(f->lost_stores);
        *f = (PreflightFacts) {};
}
