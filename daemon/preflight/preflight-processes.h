/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "preflight/preflight.h"

/* Walks /proc for processes with an open machine of KVM or VFIO device that belong to none of MACHINES. */
int luv_preflight_find_processes(MachineRegistry *machines, PreflightFacts *f);
/* The part of CGROUP that is a unit's: up to the last .service or .scope. Caller frees; NULL if out of
 * memory. */
char *luv_cgroup_of_unit(const char *cgroup);
