/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <systemd/sd-bus.h>

#include "varlink/auth.h"
#include "machine/peer.h"
#include "util/log.h"

/* Somebody may have to type a password. */
#define INTERACTIVE_TIMEOUT_USEC (300 * USEC_PER_SEC)
#define TIMEOUT_USEC (25 * USEC_PER_SEC)

struct Auth {
        sd_event *event;
        bool simulated;
        sd_bus *bus; /* as long as there are calls: the bus goes when the host is drained */
        unsigned n_calls;
};

struct AuthCall {
        Auth *auth;
        AuthDone done;
        void *userdata;
        sd_bus_slot *slot;
        bool interactive;
};

int luv_auth_new(sd_event *event, bool simulated, Auth **ret)
{
        Auth *a = calloc(1, sizeof(Auth));

        if (!a)
                return -ENOMEM;
        a->event = event ? sd_event_ref(event) : NULL;
        a->simulated = simulated;
        *ret = a;
        return 0;
}

Auth *luv_auth_free(Auth *a)
{
        if (!a)
                return NULL;
        sd_bus_close_unref(a->bus);
        sd_event_unref(a->event);
        free(a);
        return NULL;
}

AuthCall *luv_auth_call_free(AuthCall *c)
{
        if (!c)
                return NULL;
        sd_bus_slot_unref(c->slot);
        if (--c->auth->n_calls == 0)
                c->auth->bus = sd_bus_close_unref(c->auth->bus);
        free(c);
        return NULL;
}

static int on_reply(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
        AuthCall *c = userdata;
        const sd_bus_error *e = sd_bus_message_get_error(m);
        int allowed = 0, challenge = 0, r;

        c->slot = sd_bus_slot_unref(c->slot);
        if (e) {
                luv_log_warning("polkit did not answer, the call is refused: %s", e->message);
                c->done(AUTH_DENIED, c->userdata);
                return 0;
        }
        r = sd_bus_message_enter_container(m, 'r', "bba{ss}");
        if (r > 0)
                r = sd_bus_message_read(m, "bb", &allowed, &challenge);
        if (r < 0)
                luv_log_error(r, "polkit's answer cannot be read, the call is refused");
        c->done(r >= 0 && allowed                        ? AUTH_ALLOWED
                : r >= 0 && challenge && !c->interactive ? AUTH_INTERACTIVE
                                                         : AUTH_DENIED,
                c->userdata);
        return 0;
}

/* A process for polkit. The pidfd stands for it alone; older ones need pid and start. */
static int append_subject(sd_bus_message *m, const MachineOwner *peer)
{
        uint64_t start;
        int r;

        if (peer->pidfd >= 0)
                return sd_bus_message_append(m, "(sa{sv})", "unix-process", 2, "pidfd", "h", peer->pidfd,
                                             "uid", "i", (int32_t) peer->uid);
        r = luv_process_start_time(peer->pid, &start);
        if (r < 0)
                return r;
        return sd_bus_message_append(m, "(sa{sv})", "unix-process", 3, "pid", "u", (uint32_t) peer->pid,
                                     "start-time", "t", start, "uid", "i", (int32_t) peer->uid);
}

int luv_auth_check(Auth *a, const MachineOwner *peer, const char *action, bool interactive,
                   AuthResult *ret_result, AuthDone done, void *userdata, AuthCall **ret_call)
{
        _cleanup_(sd_bus_message_unrefp) sd_bus_message *m = NULL;
        _cleanup_(luv_auth_call_freep) AuthCall *c = NULL;
        int r;

        if (peer->uid == 0 || (a->simulated && peer->uid == getuid())) {
                *ret_result = AUTH_ALLOWED;
                return 1;
        }
        if (a->simulated) {
                *ret_result = AUTH_DENIED;
                return 1;
        }

        if (!a->bus) {
                r = sd_bus_open_system(&a->bus);
                if (r >= 0)
                        r = sd_bus_attach_event(a->bus, a->event, SD_EVENT_PRIORITY_NORMAL);
                if (r < 0) {
                        a->bus = sd_bus_close_unref(a->bus);
                        luv_log_errno(LOG_DEBUG, r, "No system bus, so only root is let in");
                        *ret_result = AUTH_DENIED;
                        return 1;
                }
        }
        c = calloc(1, sizeof(AuthCall));
        if (!c)
                return -ENOMEM;
        c->auth = a;
        a->n_calls++;
        c->done = done;
        c->userdata = userdata;
        c->interactive = interactive;
        r = sd_bus_message_new_method_call(a->bus, &m, "org.freedesktop.PolicyKit1",
                                           "/org/freedesktop/PolicyKit1/Authority",
                                           "org.freedesktop.PolicyKit1.Authority", "CheckAuthorization");
        if (r >= 0)
                r = append_subject(m, peer);
        if (r >= 0)
                r = sd_bus_message_append(m, "sa{ss}us", action, 0, interactive ? UINT32_C(1) : UINT32_C(0),
                                          "");
        if (r >= 0)
                r = sd_bus_call_async(a->bus, &c->slot, m, on_reply, c,
                                      interactive ? INTERACTIVE_TIMEOUT_USEC : TIMEOUT_USEC);
        if (r < 0)
                return r;
        *ret_call = TAKE_PTR(c);
        return 0;
}
