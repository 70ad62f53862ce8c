/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <luvfio/plugin.h>

#include "util/macro.h"

/* The device handle and the callbacks of <luvfio/plugin.h>. Used in the process of one operation only. */

#define LUVFIO_FINDINGS_MAX 32u

typedef struct HostOptions {
        const char *plugin; /* name */
        const char *sysfs;  /* usually /sys */
        const char *config; /* the plugin's configuration file, NULL: the usual one */
        bool simulate;
} HostOptions;

typedef struct HostFinding {
        enum luvfio_severity severity;
        char *id, *message, *remedy;
} HostFinding;

struct luvfio_device {
        const HostOptions *options;
        char *address;
        char *path;         /* folder in sysfs, need not exist */
        char *config_path;  /* the plugin's configuration file */
        uint64_t deadline;  /* CLOCK_BOOTTIME */
        uint64_t preserved; /* UINT64_MAX: not known */
        char *reason;
        HostFinding *findings;
        size_t n_findings;
};

extern const struct luvfio_host luv_host_callbacks;

/* ADDRESS: -EINVAL if it is none; lower case or not, it is kept in lower case. OPTIONS must outlive it. */
int luv_host_device_new(const HostOptions *options, const char *address, uint64_t preserved,
                        uint64_t deadline, struct luvfio_device **ret);
struct luvfio_device *luv_host_device_free(struct luvfio_device *d);
DEFINE_CLEANUP(struct luvfio_device *, luv_host_device_free);

bool luv_host_device_present(const struct luvfio_device *d);
