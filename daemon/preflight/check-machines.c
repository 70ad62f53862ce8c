/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "preflight/preflight.h"

void luv_check_machines(const PreflightFacts *f, Findings *r)
{
        if (f->lost)
                luv_warning(r, "host-record-lost",
                            &(FindingSubject) { .remedy = "Restart luvfiod, which tries again; only a cold "
                                                          "reboot frees their memory and devices." },
                            "Machines of an earlier update are lost: %s", f->lost);
        for (size_t i = 0; i < f->n_machines; i++) {
                const PreflightMachine *m = f->machines + i;
                FindingSubject s = { .machine = m->name };

                if (m->state == MACHINE_STRANDED) {
                        s.remedy = "Start its VMM again, or give it up: \"luvfioctl discard\".";
                        luv_blocker(r, "machine-stranded", &s,
                                    "Machine %s is stranded since the last update and would be lost: %s",
                                    m->name, m->reason ? m->reason : "its VMM did not come back");
                        continue;
                }
                if (!m->alive) {
                        s.remedy = "Start the machine again, or let its VMM withdraw it.";
                        luv_blocker(r, "machine-dead", &s, "The VMM of machine %s is gone", m->name);
                        continue;
                }
                if (!m->attached) {
                        s.remedy = "See whether its VMM hangs; it has to watch for luvfiod's events.";
                        luv_blocker(r, "machine-not-attached", &s,
                                    "The VMM of machine %s does not watch for events", m->name);
                }
                if (m->state != MACHINE_RUNNING && m->state != MACHINE_PREPARING &&
                    m->state != MACHINE_PREPARED) {
                        s.remedy = "See whether its VMM hangs.";
                        luv_blocker(r, "machine-not-running", &s, "Machine %s is %s: %s", m->name,
                                    luv_machine_state_to_string(m->state),
                                    m->reason ? m->reason : "its VMM has not answered");
                }
                /* The VMM has one more occasion, when it is asked to prepare; without it staging ends there.
                 */
                if (m->n_memfds == 0 || m->n_missing > 0) {
                        s.remedy = "The VMM has to hand its memory and devices over, after a restart of "
                                   "luvfiod again: see "
                                   "the guide for VMM authors.";
                        luv_warning(r, "machine-incomplete", &s,
                                    "luvfiod does not hold all of machine %s yet: %s", m->name,
                                    m->n_missing > 0 ? "it was restarted, and the VMM has not handed "
                                                       "everything over again"
                                                     : "no memory of it was handed over");
                }
                for (size_t k = 0; k < m->n_blockers; k++) {
                        s.remedy = m->blockers[k].remedy ? m->blockers[k].remedy : "See the log of its VMM.";
                        luv_blocker(r, "machine-blocked", &s, "Machine %s cannot take part: %s", m->name,
                                    m->blockers[k].message);
                }
                if (m->iommufd_blocker) {
                        s.remedy = "The VMM has to map guest memory by IOMMU_IOAS_MAP_FILE from memfds that "
                                   "it hands over, and nothing else, and each device has to be alone in "
                                   "its IOMMU group: see the guide for VMM authors.";
                        luv_blocker(r, "iommufd-blocked", &s,
                                    "The address spaces of machine %s cannot be preserved: %s", m->name,
                                    m->iommufd_blocker);
                }
                if (m->shares_control_group && !f->simulated) {
                        s.remedy = "Run the VMM in a unit of its own.";
                        luv_blocker(r, "machine-not-freezable", &s,
                                    "The VMM of machine %s shares luvfiod's own control group: it cannot be "
                                    "frozen",
                                    m->name);
                } else if (!m->in_control_group && !f->simulated) {
                        s.remedy = "Run the VMM in a systemd unit.";
                        luv_blocker(r, "machine-not-freezable", &s,
                                    "The VMM of machine %s is in no control group: it cannot be frozen",
                                    m->name);
                }
        }
}
