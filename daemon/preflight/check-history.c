/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "preflight/preflight.h"
#include "report/history.h"

/* No reason to keep an old kernel, but worth knowing before than after. */
void luv_check_history(const PreflightFacts *f, Findings *r)
{
        FindingSubject s = { .remedy = "Make room in luvfiod's state folder." };

        if (f->history_error < 0)
                luv_warning(r, "history-unwritable", &s, "The report of the update cannot be kept: %s",
                            strerror(-f->history_error));
        else if (f->history_free < LUVFIO_HISTORY_BYTES_MAX)
                luv_warning(r, "history-disk-full", &s,
                            "The report of the update can perhaps not be kept: the disk is nearly full");
}
