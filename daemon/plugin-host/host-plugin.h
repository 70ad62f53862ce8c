/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <luvfio/plugin.h>

#include "plugin-host/host-device.h"
#include "util/macro.h"

/* Loading a plugin, and running one operation of it. */

typedef enum HostOp {
        HOST_OP_MATCH,
        HOST_OP_PREFLIGHT,
        HOST_OP_QUIESCED,
        HOST_OP_PLAN,
        HOST_OP_REBIND,
        HOST_OP_VERIFY,
        HOST_OP_RECOVER,
        _HOST_OP_MAX,
        _HOST_OP_INVALID = -EINVAL,
} HostOp;

const char *luv_host_op_to_string(HostOp op);
HostOp luv_host_op_from_string(const char *s);

#define LUVFIO_PLUGIN_NAME_MAX 32u

/* a-z, 0-9 and -, first a letter. */
bool luv_plugin_name_valid(const char *s);

/* Is never unloaded. -ELIBBAD with a sentence: it cannot be loaded, or is not what this host can run. */
int luv_host_plugin_load(const char *dir, const char *name, const struct luvfio_plugin **ret,
                         char **ret_reason);

/* The handshake alone. */
int luv_host_plugin_check(const struct luvfio_plugin *p, const char *name, char **ret_reason);

/*
 * Runs OP on DEVICE (PLAN as the operation needs it) in this process, and gives what is to be answered as
 * JSON: {"ok":{...}}, the method's output, or {"failed":"reason"}.
 */
int luv_host_plugin_run(const struct luvfio_plugin *p, HostOp op, struct luvfio_device *device,
                        const char *plan, char **ret_answer);
