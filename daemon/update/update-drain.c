/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <unistd.h>

#include "report/messages.h"
#include "update/update-private.h"
#include "util/log.h"
#include "util/string-util.h"
#include "util/time-util.h"

/* Draining: the host's other services are stopped in order, so that nothing of that falls into the blackout.
 */

static bool has_suffix(const char *s, const char *suffix)
{
        size_t n = strlen(s), k = strlen(suffix);

        return n > k && streq(s + n - k, suffix);
}

/* Units that somebody started and somebody will miss. Targets come back by themselves, scopes cannot. */
static bool is_wanted_back(const UnitInfo *i)
{
        if (!streq(i->active_state, "active"))
                return false;
        if (has_suffix(i->name, ".service"))
                return streq(i->sub_state, "running") || streq(i->sub_state, "exited");
        return has_suffix(i->name, ".socket") || has_suffix(i->name, ".timer") ||
               has_suffix(i->name, ".path");
}

static void on_undo_idle(int error, const char *reason, void *userdata)
{
        Update *u = userdata;

        u->units_wait = luv_units_wait_free(u->units_wait);
        if (error < 0)
                luv_log_warning("Not all services were started again in time: %s",
                                reason ? reason : strerror(-error));
        luv_update_undo_done(u);
}

static void on_undo_started(int error, const char *reason, void *userdata)
{
        Update *u = userdata;
        int r;

        u->units_slot = sd_bus_slot_unref(u->units_slot);
        if (error < 0) {
                luv_log_warning("The service manager did not start default.target again: %s",
                                reason ? reason : strerror(-error));
                luv_update_undo_done(u);
                return;
        }
        for (char **unit = u->units_stopped ? u->units_stopped : u->units_before; unit && *unit; unit++)
                luv_units_start_and_forget(u->units, *unit);
        luv_units_stop_and_forget(u->units, LUVFIO_DRAIN_TARGET);
        r = luv_units_wait_idle(u->units, luv_now_usec() + DRAIN_DEADLINE_USEC, on_undo_idle, u,
                                &u->units_wait);
        if (r < 0) {
                luv_log_error(r, "Cannot wait for the services to start again");
                luv_update_undo_done(u);
        }
}

/* Not isolated: what runs by now and is not part of default.target, such as the machines, goes on. */
static int undo_drain(Update *u)
{
        int r;

        luv_update_say(u, NULL, "services of the host are started again");
        r = luv_units_start(u->units, "default.target", "replace", on_undo_started, u, &u->units_slot);
        return r < 0 ? r : 1;
}

static void drained(Update *u)
{
        if (luv_update_write_journal(u) < 0) {
                luv_update_fail(u, NULL, "the update cannot be noted in %s", u->config.runtime_dir);
                return;
        }
        /* Most of what is dirty is written now, while machines run; at the jump little is left. */
        if (!u->config.simulated)
                sync();
        luv_update_quiesce(u);
}

static void on_listed_after(int error, const char *reason, const UnitInfo *units, size_t n, void *userdata)
{
        Update *u = userdata;
        char **stopped = NULL;

        u->units_slot = sd_bus_slot_unref(u->units_slot);
        if (error < 0) {
                luv_update_fail(u, NULL, "the service manager did not list its units: %s",
                                reason ? reason : strerror(-error));
                return;
        }
        for (char **before = u->units_before; before && *before; before++) {
                bool active = false;

                for (size_t i = 0; i < n && !active; i++)
                        active = streq(units[i].name, *before) && streq(units[i].active_state, "active");
                if (!active && luv_strv_extend(&stopped, *before) < 0) {
                        luv_strv_free(stopped);
                        luv_update_fail(u, NULL, "out of memory");
                        return;
                }
        }
        luv_log_info("Drained: %zu units are to be started again", luv_strv_length(stopped));
        luv_strv_free(u->units_stopped);
        u->units_stopped = stopped;
        drained(u);
}

static void on_idle(int error, const char *reason, void *userdata)
{
        Update *u = userdata;
        int r;

        u->units_wait = luv_units_wait_free(u->units_wait);
        if (error < 0) {
                luv_update_fail(u, NULL, "the host's services were not stopped in time: %s",
                                reason ? reason : strerror(-error));
                return;
        }
        r = luv_units_list(u->units, on_listed_after, u, &u->units_slot);
        if (r < 0)
                luv_update_fail(u, NULL, "the service manager cannot be asked: %s", strerror(-r));
}

static void on_isolated(int error, const char *reason, void *userdata)
{
        Update *u = userdata;
        int r;

        u->units_slot = sd_bus_slot_unref(u->units_slot);
        if (error < 0) {
                luv_update_fail(u, NULL, "the service manager did not isolate " LUVFIO_DRAIN_TARGET ": %s",
                                reason ? reason : strerror(-error));
                return;
        }
        /* The job is queued; what it stops ends later. */
        r = luv_units_wait_idle(u->units, luv_now_usec() + DRAIN_DEADLINE_USEC, on_idle, u, &u->units_wait);
        if (r < 0)
                luv_update_fail(u, NULL, "the service manager cannot be asked: %s", strerror(-r));
}

static void on_listed_before(int error, const char *reason, const UnitInfo *units, size_t n, void *userdata)
{
        Update *u = userdata;
        int r;

        u->units_slot = sd_bus_slot_unref(u->units_slot);
        if (error < 0) {
                luv_update_fail(u, NULL, "the service manager did not list its units: %s",
                                reason ? reason : strerror(-error));
                return;
        }
        for (size_t i = 0; i < n; i++)
                if (is_wanted_back(units + i) && luv_strv_extend(&u->units_before, units[i].name) < 0) {
                        luv_update_fail(u, NULL, "out of memory");
                        return;
                }
        r = luv_update_push_undo(u, "draining the host", undo_drain);
        if (r >= 0)
                r = luv_update_write_journal(u);
        if (r >= 0) {
                luv_update_say(u, NULL, "services of the host are being stopped");
                r = luv_units_start(u->units, LUVFIO_DRAIN_TARGET, "isolate", on_isolated, u,
                                    &u->units_slot);
        }
        if (r < 0)
                luv_update_fail(u, NULL, "the host cannot be drained: %s", strerror(-r));
}

void luv_update_drain(Update *u)
{
        int r;

        r = luv_update_transition(u, UPDATE_DRAINING);
        if (r < 0) {
                luv_update_fail(u, NULL, "wrong state");
                return;
        }
        if (u->config.simulated) {
                drained(u);
                return;
        }
        r = luv_units_list(u->units, on_listed_before, u, &u->units_slot);
        if (r < 0)
                luv_update_fail(u, NULL, "the service manager cannot be asked: %s", strerror(-r));
}
