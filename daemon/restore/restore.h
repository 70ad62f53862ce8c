/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-event.h>

#include "luo/fd-store.h"
#include "luo/luo.h"
#include "plugin/plugin-client.h"
#include "restore/manifest.h"

/*
 * The way back in the new kernel: host session, manifest, machines' sessions, devices. Free of D-Bus,
 * journal, polkit and units, so that it can run before PID 1. Every session fd is in the fd store before
 * anything else is done with it. A machine that fails is stranded and the others go on: its session stays
 * stored, unfinished, its devices untouched.
 */

typedef struct Restore Restore;

typedef struct RestoreCallbacks {
        /* The host record was read; before any machine. Restore keeps HOST. */
        void (*found)(const HostRecord *host, void *userdata);
        /* All devices of a machine are back. RECORD and SESSION are the callee's. */
        void (*ready)(MachineRecord *record, LuoSession *session, void *userdata);
        /*
         * The host record names a machine whose session the kernel does not have (any more), or has with
         * nothing in it: an earlier incarnation finished it, and was killed before it was done with the
         * others. May be NULL: stranded.
         */
        void (*gone)(const char *machine, void *userdata);
        /* RECORD and SESSION may be NULL (could not be had); the callee's. */
        void (*stranded)(const char *machine, const char *reason, MachineRecord *record, LuoSession *session,
                         void *userdata);
        /* After the last machine. ERROR: -ENOENT there is nothing to restore (a cold boot); else 0 or why
         * the host record could not be had, with REASON. HOST_SESSION and HOST are the callee's, may be
         * NULL. */
        void (*done)(int error, const char *reason, HostRecord *host, LuoSession *host_session,
                     void *userdata);
} RestoreCallbacks;

/* Also right when a first attempt was killed half way: sessions are taken from the fd store or from the
 * kernel. */
int luv_restore_start(sd_event *event, Luo *luo, FdStore *store, PluginManager *plugins, uint64_t deadline,
                      const RestoreCallbacks *callbacks, void *userdata, Restore **ret);
Restore *luv_restore_free(Restore *r);
DEFINE_CLEANUP(Restore *, luv_restore_free);
