/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "ctl/ctl-format.h"
#include "ctl/ctl-model.h"

/* What people see. All return 0 or -ENOMEM. */

int ctl_show_description(const Terminal *t, const Description *d);
/* Blockers first, each with its remedy; then what it comes to. */
int ctl_show_findings(const Terminal *t, const Finding *findings, size_t n);
int ctl_show_machines(const Terminal *t, const Machine *machines, size_t n);
int ctl_show_devices(const Terminal *t, const Device *devices, size_t n);
int ctl_show_history(const Terminal *t, const Report *reports, size_t n);
/* One update's result in a few lines. */
int ctl_show_result(const Terminal *t, const Report *r);
/* The same with charts of where the time went. */
int ctl_show_analysis(const Terminal *t, const Report *r);

/* What happens in a state, for progress that comes without words; "" for one that is not known. */
const char *ctl_state_description(const char *state);
/* "vm1: prepared (3 of 16)", a new clean string; "" if there is nothing to say. NULL: out of memory. */
char *ctl_progress_text(const Progress *p);
