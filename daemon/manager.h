/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "machine/machine.h"
#include "util/macro.h"

/* Owns everything, in the order in which it has to go. */

typedef struct ManagerOptions {
        bool simulate;
        const char *simulate_fail;
        const char *runtime_dir, *state_dir;
        const char *plugin_host;
        char **plugins;
        uint64_t resume_deadline_usec;
        MachineQuota quota;
} ManagerOptions;

typedef struct Manager Manager;

/* OPTIONS and ARGV must outlive the manager. */
int luv_manager_new(const ManagerOptions *options, char *const *argv, Manager **ret);
Manager *luv_manager_free(Manager *m);
DEFINE_CLEANUP(Manager *, luv_manager_free);

/* Until SIGTERM or SIGINT; 0 or -errno. */
int luv_manager_run(Manager *m);
