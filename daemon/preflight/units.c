/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "preflight/units.h"
#include "util/log.h"
#include "util/string-util.h"
#include "util/time-util.h"

#define PRIVATE_SOCKET "unix:path=/run/systemd/private"
#define DESTINATION "org.freedesktop.systemd1"
#define MANAGER_PATH "/org/freedesktop/systemd1"
#define MANAGER_INTERFACE "org.freedesktop.systemd1.Manager"
#define UNIT_INTERFACE "org.freedesktop.systemd1.Unit"
#define SERVICE_INTERFACE "org.freedesktop.systemd1.Service"

/* One call's timeout: the manager answers at once or is in trouble. */
#define CALL_TIMEOUT_USEC (25 * USEC_PER_SEC)

struct Units {
        sd_event *event;
        sd_bus *bus;
        UnitsWait *waits;
};

/* What a call carries to its reply; the slot owns it. */
typedef struct Call {
        Units *units;
        UnitsDone done;
        UnitsListDone list_done;
        UnitsSurvivalDone survival_done;
        UnitsStoreDone store_done;
        void *userdata;
        char *unit;
} Call;

struct UnitsWait {
        Units *units;
        UnitsWait *next;
        UnitsDone done;
        void *userdata;
        sd_bus_slot *match, *get;
        sd_event_source *timer;
        bool again; /* a job ended while the property was being asked for */
};

int luv_units_new(sd_event *event, Units **ret)
{
        Units *u = calloc(1, sizeof(Units));

        if (!u)
                return -ENOMEM;
        u->event = sd_event_ref(event);
        *ret = u;
        return 0;
}

Units *luv_units_free(Units *u)
{
        if (!u)
                return NULL;
        while (u->waits)
                luv_units_wait_free(u->waits);
        sd_bus_close_unref(u->bus);
        sd_event_unref(u->event);
        free(u);
        return NULL;
}

static int units_connect(Units *u)
{
        _cleanup_(sd_bus_close_unrefp) sd_bus *bus = NULL;
        int r;

        if (u->bus && sd_bus_is_open(u->bus) > 0)
                return 0;
        u->bus = sd_bus_close_unref(u->bus);
        r = sd_bus_new(&bus);
        if (r >= 0)
                r = sd_bus_set_address(bus, PRIVATE_SOCKET);
        if (r >= 0)
                r = sd_bus_start(bus);
        if (r >= 0)
                r = sd_bus_attach_event(bus, u->event, SD_EVENT_PRIORITY_NORMAL);
        if (r < 0)
                return r;
        u->bus = TAKE_PTR(bus);
        return 0;
}

static void call_free(void *p)
{
        Call *c = p;

        free(c->unit);
        free(c);
}

/* Sends M; C is freed with the slot, or here on failure. */
static int send_call(Units *u, sd_bus_message *m, sd_bus_message_handler_t reply, Call *c, sd_bus_slot **ret)
{
        sd_bus_slot *slot;
        int r;

        r = sd_bus_call_async(u->bus, &slot, m, reply, c, CALL_TIMEOUT_USEC);
        if (r < 0) {
                call_free(c);
                return r;
        }
        (void) sd_bus_slot_set_destroy_callback(slot, call_free);
        if (ret) {
                *ret = slot;
        } else {
                /* Goes with its reply. */
                (void) sd_bus_slot_set_floating(slot, true);
                sd_bus_slot_unref(slot);
        }
        return 0;
}

static Call *call_new(Units *u, const char *unit, void *userdata)
{
        Call *c = calloc(1, sizeof(Call));

        if (!c)
                return NULL;
        c->units = u;
        c->userdata = userdata;
        if (luv_free_and_strdup(&c->unit, unit) < 0) {
                free(c);
                return NULL;
        }
        return c;
}

static int list_reply(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
        Call *c = userdata;
        _cleanup_free_ UnitInfo *units = NULL;
        const sd_bus_error *e = sd_bus_message_get_error(m);
        size_t n = 0, allocated = 0;
        int r;

        if (e) {
                c->list_done(-sd_bus_message_get_errno(m), e->message, NULL, 0, c->userdata);
                return 0;
        }
        r = sd_bus_message_enter_container(m, 'a', "(ssssssouso)");
        while (r > 0) {
                UnitInfo i;

                r = sd_bus_message_read(m, "(ssssssouso)", &i.name, NULL, NULL, &i.active_state,
                                        &i.sub_state, NULL, NULL, NULL, NULL, NULL);
                if (r <= 0)
                        break;
                if (n == allocated) {
                        UnitInfo *bigger;

                        allocated = MAX(allocated * 2, (size_t) 64);
                        bigger = reallocarray(units, allocated, sizeof(UnitInfo));
                        if (!bigger) {
                                r = -ENOMEM;
                                break;
                        }
                        units = bigger;
                }
                units[n++] = i;
        }
        if (r < 0)
                c->list_done(r, "the service manager's list of units cannot be read", NULL, 0, c->userdata);
        else
                c->list_done(0, NULL, units, n, c->userdata);
        return 0;
}

int luv_units_list(Units *u, UnitsListDone done, void *userdata, sd_bus_slot **ret)
{
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        Call *c;
        int r;

        r = units_connect(u);
        if (r < 0)
                return r;
        r = sd_bus_message_new_method_call(u->bus, &m, DESTINATION, MANAGER_PATH, MANAGER_INTERFACE,
                                           "ListUnits");
        if (r < 0)
                return r;
        c = call_new(u, NULL, userdata);
        if (!c)
                return -ENOMEM;
        c->list_done = done;
        return send_call(u, m, list_reply, c, ret);
}

static int job_reply(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
        Call *c = userdata;
        const sd_bus_error *e = sd_bus_message_get_error(m);

        if (c->done)
                c->done(e ? -sd_bus_message_get_errno(m) : 0, e ? e->message : NULL, c->userdata);
        else if (e)
                luv_log_warning("The service manager did not take the job for %s: %s", c->unit, e->message);
        return 0;
}

static int queue_job(Units *u, const char *method, const char *unit, const char *mode, UnitsDone done,
                     void *userdata, sd_bus_slot **ret)
{
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        Call *c;
        int r;

        r = units_connect(u);
        if (r < 0)
                return r;
        r = sd_bus_message_new_method_call(u->bus, &m, DESTINATION, MANAGER_PATH, MANAGER_INTERFACE, method);
        if (r >= 0)
                r = sd_bus_message_append(m, "ss", unit, mode);
        if (r < 0)
                return r;
        c = call_new(u, unit, userdata);
        if (!c)
                return -ENOMEM;
        c->done = done;
        return send_call(u, m, job_reply, c, ret);
}

int luv_units_start(Units *u, const char *unit, const char *mode, UnitsDone done, void *userdata,
                    sd_bus_slot **ret)
{
        return queue_job(u, "StartUnit", unit, mode, done, userdata, ret);
}

void luv_units_start_and_forget(Units *u, const char *unit)
{
        int r = queue_job(u, "StartUnit", unit, "replace", NULL, NULL, NULL);

        if (r < 0)
                luv_log_error(r, "Cannot ask the service manager to start %s", unit);
}

void luv_units_stop_and_forget(Units *u, const char *unit)
{
        int r = queue_job(u, "StopUnit", unit, "replace", NULL, NULL, NULL);

        if (r < 0)
                luv_log_error(r, "Cannot ask the service manager to stop %s", unit);
}

/* Ends the wait. */
static void wait_finish(UnitsWait *w, int error, const char *reason)
{
        UnitsDone done = w->done;
        void *userdata = w->userdata;

        w->match = sd_bus_slot_unref(w->match);
        w->get = sd_bus_slot_unref(w->get);
        w->timer = sd_event_source_disable_unref(w->timer);
        /* The callback may free it. */
        done(error, reason, userdata);
}

static int wait_ask(UnitsWait *w);

static int wait_reply(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
        UnitsWait *w = userdata;
        const sd_bus_error *e = sd_bus_message_get_error(m);
        uint32_t n;
        int r;

        w->get = sd_bus_slot_unref(w->get);
        if (e) {
                wait_finish(w, -sd_bus_message_get_errno(m), e->message);
                return 0;
        }
        r = sd_bus_message_read(m, "v", "u", &n);
        if (r < 0) {
                wait_finish(w, r, "the service manager's number of jobs cannot be read");
                return 0;
        }
        if (n == 0) {
                wait_finish(w, 0, NULL);
                return 0;
        }
        if (w->again) {
                w->again = false;
                r = wait_ask(w);
                if (r < 0)
                        wait_finish(w, r, "the service manager cannot be asked");
        }
        return 0;
}

static int wait_ask(UnitsWait *w)
{
        /* One question at a time; whatever happened since is covered by another. */
        if (w->get) {
                w->again = true;
                return 0;
        }
        return sd_bus_call_method_async(w->units->bus, &w->get, DESTINATION, MANAGER_PATH,
                                        "org.freedesktop.DBus.Properties", "Get", wait_reply, w, "ss",
                                        MANAGER_INTERFACE, "NJobs");
}

static int on_job_removed(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
        UnitsWait *w = userdata;
        int r;

        r = wait_ask(w);
        if (r < 0)
                wait_finish(w, r, "the service manager cannot be asked");
        return 0;
}

static int on_wait_timeout(sd_event_source *s, uint64_t usec, void *userdata)
{
        wait_finish(userdata, -ETIME, "jobs of the service manager did not end in time");
        return 0;
}

int luv_units_wait_idle(Units *u, uint64_t deadline, UnitsDone done, void *userdata, UnitsWait **ret)
{
        UnitsWait *w;
        int r;

        r = units_connect(u);
        if (r < 0)
                return r;
        w = calloc(1, sizeof(UnitsWait));
        if (!w)
                return -ENOMEM;
        w->units = u;
        w->done = done;
        w->userdata = userdata;
        w->next = u->waits;
        u->waits = w;
        /* Clients of the private socket get all signals; the match is our own. */
        r = sd_bus_match_signal(u->bus, &w->match, NULL, MANAGER_PATH, MANAGER_INTERFACE, "JobRemoved",
                                on_job_removed, w);
        if (r >= 0)
                r = sd_event_add_time(u->event, &w->timer, CLOCK_BOOTTIME, deadline, 0, on_wait_timeout, w);
        if (r >= 0)
                r = wait_ask(w);
        if (r < 0) {
                luv_units_wait_free(w);
                return r;
        }
        *ret = w;
        return 0;
}

UnitsWait *luv_units_wait_free(UnitsWait *w)
{
        if (!w)
                return NULL;
        for (UnitsWait **p = &w->units->waits; *p; p = &(*p)->next)
                if (*p == w) {
                        *p = w->next;
                        break;
                }
        sd_bus_slot_unref(w->match);
        sd_bus_slot_unref(w->get);
        sd_event_source_disable_unref(w->timer);
        free(w);
        return NULL;
}

/* Calls PROPERTY(name, m) for each of a{sv}; the value is skipped if it leaves it unread. */
typedef int (*PropertyFunc)(const char *name, sd_bus_message *m, void *userdata);

static int read_properties(sd_bus_message *m, PropertyFunc property, void *userdata)
{
        int r;

        r = sd_bus_message_enter_container(m, 'a', "{sv}");
        while (r > 0) {
                const char *name;

                r = sd_bus_message_enter_container(m, 'e', "sv");
                if (r <= 0)
                        break;
                r = sd_bus_message_read(m, "s", &name);
                if (r < 0)
                        break;
                r = property(name, m, userdata);
                if (r < 0)
                        break;
                if (r == 0) {
                        r = sd_bus_message_skip(m, "v");
                        if (r < 0)
                                break;
                }
                r = sd_bus_message_exit_container(m);
                if (r < 0)
                        break;
                r = 1;
        }
        return r;
}

typedef struct Survival {
        bool loaded, wanted, ignores;
} Survival;

static int survival_property(const char *name, sd_bus_message *m, void *userdata)
{
        Survival *s = userdata;
        int r;

        if (streq(name, "LoadState")) {
                const char *state;

                r = sd_bus_message_read(m, "v", "s", &state);
                s->loaded = r >= 0 && streq(state, "loaded");
                return r < 0 ? r : 1;
        }
        if (streq(name, "IgnoreOnIsolate")) {
                int b;

                r = sd_bus_message_read(m, "v", "b", &b);
                s->ignores = r >= 0 && b;
                return r < 0 ? r : 1;
        }
        if (streq(name, "WantedBy") || streq(name, "RequiredBy") || streq(name, "UpheldBy")) {
                const char *unit;

                r = sd_bus_message_enter_container(m, 'v', "as");
                if (r >= 0)
                        r = sd_bus_message_enter_container(m, 'a', "s");
                while (r >= 0 && (r = sd_bus_message_read(m, "s", &unit)) > 0)
                        s->wanted = s->wanted || streq(unit, LUVFIO_DRAIN_TARGET);
                if (r >= 0)
                        r = sd_bus_message_exit_container(m);
                if (r >= 0)
                        r = sd_bus_message_exit_container(m);
                return r < 0 ? r : 1;
        }
        return 0;
}

static int survival_reply(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
        Call *c = userdata;
        Survival s = {};
        UnitSurvival result = UNIT_UNKNOWN;

        /* sysinit.target stays, so that a service with default dependencies survives if it is not stopped
         * itself. */
        if (!sd_bus_message_get_error(m) && read_properties(m, survival_property, &s) >= 0 && s.loaded)
                result = s.wanted || s.ignores ? UNIT_SURVIVES : UNIT_STOPPED;
        c->survival_done(result, c->userdata);
        return 0;
}

static int get_all(Units *u, const char *unit, const char *interface, sd_bus_message_handler_t reply,
                   Call *c, sd_bus_slot **ret)
{
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        _cleanup_free_ char *path = NULL;
        int r;

        r = units_connect(u);
        if (r >= 0)
                r = sd_bus_path_encode("/org/freedesktop/systemd1/unit", unit, &path);
        if (r >= 0)
                r = sd_bus_message_new_method_call(u->bus, &m, DESTINATION, path,
                                                   "org.freedesktop.DBus.Properties", "GetAll");
        if (r >= 0)
                r = sd_bus_message_append(m, "s", interface);
        if (r < 0) {
                call_free(c);
                return r;
        }
        return send_call(u, m, reply, c, ret);
}

int luv_units_survival(Units *u, const char *unit, UnitsSurvivalDone done, void *userdata, sd_bus_slot **ret)
{
        Call *c = call_new(u, unit, userdata);

        if (!c)
                return -ENOMEM;
        c->survival_done = done;
        return get_all(u, unit, UNIT_INTERFACE, survival_reply, c, ret);
}

typedef struct Store {
        uint32_t n;
        bool preserved;
} Store;

static int store_property(const char *name, sd_bus_message *m, void *userdata)
{
        Store *s = userdata;
        const char *v;
        int r;

        if (streq(name, "NFileDescriptorStore")) {
                r = sd_bus_message_read(m, "v", "u", &s->n);
                return r < 0 ? r : 1;
        }
        if (streq(name, "FileDescriptorStorePreserve")) {
                r = sd_bus_message_read(m, "v", "s", &v);
                if (r < 0)
                        return r;
                s->preserved = streq(v, "yes") || streq(v, "on-success");
                return 1;
        }
        return 0;
}

static int store_reply(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
        Call *c = userdata;
        Store s = {};

        if (sd_bus_message_get_error(m) || read_properties(m, store_property, &s) < 0)
                s = (Store) {};
        c->store_done(s.preserved && s.n > 0, c->userdata);
        return 0;
}

int luv_units_has_store(Units *u, const char *unit, UnitsStoreDone done, void *userdata, sd_bus_slot **ret)
{
        Call *c = call_new(u, unit, userdata);

        if (!c)
                return -ENOMEM;
        c->store_done = done;
        return get_all(u, unit, SERVICE_INTERFACE, store_reply, c, ret);
}
