/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-event.h>

#include "luo/fd-identify.h"
#include "util/macro.h"

/*
 * luvfiod's side of the plugins: asks the plugin hosts (org.luvfio.Plugin), one connection a call, so that a
 * plugin that hangs or dies costs its device and nothing else. Plugins are found as sockets NAME in the
 * plugin socket folder; where there is none (--simulate) the host program is run for each call.
 */

typedef struct PluginManager PluginManager;
typedef struct PluginCall PluginCall;

typedef enum PluginOp {
        PLUGIN_OP_MATCH,     /* asks all plugins; result: plugin, promise */
        PLUGIN_OP_PREFLIGHT, /* result: findings */
        PLUGIN_OP_QUIESCED,
        PLUGIN_OP_PLAN, /* result: plan */
        PLUGIN_OP_REBIND,
        PLUGIN_OP_VERIFY,
        PLUGIN_OP_RECOVER,
        _PLUGIN_OP_MAX,
        _PLUGIN_OP_INVALID = -EINVAL,
} PluginOp;

typedef struct PluginFinding {
        char *id, *severity, *message, *remedy;
} PluginFinding;

/* Valid during the callback only. */
typedef struct PluginResult {
        int error;          /* 0, -ENODEV no plugin matches, -ETIME, -EPIPE it died, -EREMOTEIO it said no */
        const char *reason; /* a sentence that names plugin and device, if error */
        const char *plugin, *promise, *plan;
        const PluginFinding *findings;
        size_t n_findings;
} PluginResult;

typedef void (*PluginDone)(const PluginResult *result, void *userdata);

/* SOCKET_DIR: usually LUVFIO_PLUGIN_SOCKET_DIR. SPAWN: path of luvfio-plugin-host for --simulate, or NULL;
 * then SPAWN_PLUGINS (NULL-terminated) are the plugins it can run. */
int luv_plugin_manager_new(sd_event *event, const char *socket_dir, const char *spawn,
                           char *const *spawn_plugins, PluginManager **ret);
PluginManager *luv_plugin_manager_unref(PluginManager *m);
DEFINE_CLEANUP(PluginManager *, luv_plugin_manager_unref);

/*
 * One operation on one device. PLUGIN: as MATCH gave it (NULL with MATCH); PLAN: as PLAN gave it, for
 * rebind, verify, recover. PRESERVED: of the device, as luv_fd_preserved(); for those before. DEADLINE:
 * CLOCK_BOOTTIME microseconds. One callback, never from within the call; freeing the call cancels it.
 */
int luv_plugin_call(PluginManager *m, PluginOp op, const char *plugin, const char *device, const char *plan,
                    uint64_t preserved, uint64_t deadline, PluginDone done, void *userdata,
                    PluginCall **ret);
PluginCall *luv_plugin_call_free(PluginCall *c);
DEFINE_CLEANUP(PluginCall *, luv_plugin_call_free);
