/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "preflight/preflight.h"

void luv_check_devices(const PreflightFacts *f, Findings *r)
{
        for (size_t i = 0; i < f->n_devices; i++) {
                const PreflightDevice *d = f->devices + i;
                FindingSubject s = { .machine = d->machine, .device = d->address };

                if (!d->plugin) {
                        s.remedy = "Enable a plugin for it, or take the device from the machine.";
                        luv_blocker(r, "device-no-plugin", &s,
                                    "No plugin answers for device %s of machine %s: %s", d->address,
                                    d->machine, d->reason ? d->reason : "none matches");
                        continue;
                }
                if (d->reason) {
                        s.remedy = "See the journal of the plugin's unit.";
                        luv_blocker(r, "plugin-failed", &s,
                                    "The plugin %s could not look at device %s of machine %s: %s", d->plugin,
                                    d->address, d->machine, d->reason);
                }
                for (size_t k = 0; k < d->findings.n; k++) {
                        const Finding *x = d->findings.items + k;

                        /* Said below, of every plugin's devices alike. */
                        if (streq(x->id, "device-reset"))
                                continue;
                        s.remedy = x->remedy;
                        luv_findings_add(r, x->id, x->severity, &s, "%s", x->message);
                }
                /* What this kernel preserves of a device is the open file; a word of more than that is not
                 * kept. */
                if (!d->promise || !streq(d->promise, "reset")) {
                        s.remedy = "Use the plugin with a kernel that preserves devices running.";
                        luv_blocker(r, "device-promise", &s,
                                    "The plugin %s promises \"%s\" for device %s of machine %s, which this "
                                    "kernel "
                                    "cannot keep: it is reset on the way",
                                    d->plugin, d->promise ? d->promise : "", d->address, d->machine);
                } else {
                        s.remedy = NULL;
                        luv_warning(r, "device-reset", &s,
                                    "Device %s of machine %s will be reset on the way", d->address,
                                    d->machine);
                }
        }
}
