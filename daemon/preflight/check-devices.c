/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <luvfio/plugin.h>

#include "preflight/preflight.h"
#include "util/string-util.h"

/* Whether what the kernel preserves of a device is enough for that promise. */
static bool can_be_kept(const char *promise, uint64_t preserved)
{
        if (!promise)
                return false;
        if (streq(promise, "reset"))
                return true;
        return luv_fd_preserved_running(preserved) &&
               (streq(promise, "running") || (preserved & LUVFIO_PRESERVED_INTERRUPTS));
}

/* What this kernel preserves of the device, and what it does not, each as a list for people. */
static void note_preserved(const PreflightDevice *d, const FindingSubject *s, Findings *r)
{
        _cleanup_free_ char *kept = NULL, *lost = NULL;

        if (d->preserved == FD_PRESERVED_UNKNOWN)
                return;
        kept = luv_fd_preserved_list(d->preserved, true);
        lost = luv_fd_preserved_list(d->preserved, false);
        luv_note(r, "device-preserved", s, "Of device %s of machine %s this kernel preserves: %s; not: %s",
                 d->address, d->machine, kept ? kept : "?", lost ? lost : "?");
}

void luv_check_devices(const PreflightFacts *f, Findings *r)
{
        for (size_t i = 0; i < f->n_devices; i++) {
                const PreflightDevice *d = f->devices + i;
                FindingSubject s = { .machine = d->machine, .device = d->address };
                const char *why = NULL;

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
                        if (streq(x->id, "device-reset")) {
                                why = x->message;
                                continue;
                        }
                        s.remedy = x->remedy;
                        luv_findings_add(r, x->id, x->severity, &s, "%s", x->message);
                }
                s.remedy = NULL;
                note_preserved(d, &s, r);
                if (!can_be_kept(d->promise, d->preserved)) {
                        s.remedy = "Use the plugin with a kernel that preserves that of the device.";
                        luv_blocker(r, "device-promise", &s,
                                    "The plugin %s promises \"%s\" for device %s of machine %s, which this "
                                    "kernel cannot keep",
                                    d->plugin, strempty(d->promise), d->address, d->machine);
                } else if (streq(d->promise, "reset"))
                        luv_warning(r, "device-reset", &s,
                                    "Device %s of machine %s will be reset on the way%s%s", d->address,
                                    d->machine, why ? ": " : "", strempty(why));
        }
}
