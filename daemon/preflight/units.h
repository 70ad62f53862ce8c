/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-bus.h>
#include <systemd/sd-event.h>

#include "util/macro.h"

/* The service manager, over its own socket: it is there when the message bus is not. Nothing here blocks. */

typedef struct Units Units;
typedef struct UnitsWait UnitsWait;

typedef struct UnitInfo {
        const char *name, *active_state, *sub_state;
} UnitInfo;

typedef enum UnitSurvival {
        UNIT_STOPPED, /* by the drain */
        UNIT_SURVIVES,
        UNIT_UNKNOWN, /* no such unit */
} UnitSurvival;

#define LUVFIO_DRAIN_TARGET "luvfiod-drain.target"

/* Valid during the callback only. ERROR: -errno. Never from within the call. */
typedef void (*UnitsDone)(int error, const char *reason, void *userdata);
typedef void (*UnitsListDone)(int error, const char *reason, const UnitInfo *units, size_t n,
                              void *userdata);
typedef void (*UnitsSurvivalDone)(UnitSurvival survival, void *userdata);
typedef void (*UnitsStoreDone)(bool lost, void *userdata);

/* Connects when it is first needed, and again after a connection was lost. */
int luv_units_new(sd_event *event, Units **ret);
Units *luv_units_free(Units *u);
DEFINE_CLEANUP(Units *, luv_units_free);

/* Unrefing the slot cancels the callback. */
int luv_units_list(Units *u, UnitsListDone done, void *userdata, sd_bus_slot **ret);
/* Queues a job; MODE: replace, isolate, ... */
int luv_units_start(Units *u, const char *unit, const char *mode, UnitsDone done, void *userdata,
                    sd_bus_slot **ret);
/* A job nobody waits for; a failure is logged. */
void luv_units_start_and_forget(Units *u, const char *unit);
void luv_units_stop_and_forget(Units *u, const char *unit);

/* Until there is no job left in the queue. -ETIME. */
int luv_units_wait_idle(Units *u, uint64_t deadline, UnitsDone done, void *userdata, UnitsWait **ret);
UnitsWait *luv_units_wait_free(UnitsWait *w);
DEFINE_CLEANUP(UnitsWait *, luv_units_wait_free);

/* Whether isolating the drain target leaves UNIT alone. */
int luv_units_survival(Units *u, const char *unit, UnitsSurvivalDone done, void *userdata,
                       sd_bus_slot **ret);
/* Whether UNIT has fds in a store that a service manager of ours would have carried over. */
int luv_units_has_store(Units *u, const char *unit, UnitsStoreDone done, void *userdata, sd_bus_slot **ret);
