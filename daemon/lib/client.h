/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/* Inside of libluvfio: one object, split over object and calls (client.c), events (client-events.c), what
 * travels (client-wire.c) and the secret's file (client-secret.c). */

#include <systemd/sd-event.h>
#include <systemd/sd-json.h>
#include <systemd/sd-varlink.h>

#include "luvfio/luvfio.h"
#include "util/macro.h"

#define CLIENT_INTERFACE "org.luvfio.Machine"
#define CLIENT_SOCKET "/run/luvfiod/org.luvfio.Machine"
#define CLIENT_TIMEOUT_USEC (90 * USEC_PER_SEC)
#define REGISTER_RETRY_USEC (20 * USEC_PER_MSEC)
#define CLIENT_SECRET_LENGTH 32

/* Where the event connection is. */
typedef enum EventsStage {
        EVENTS_OFF,         /* not registered */
        EVENTS_WAITING,     /* the timer will connect */
        EVENTS_REGISTERING, /* connected again, Register is under way */
        EVENTS_WATCHING,    /* Watch is under way, `attached` has not come */
        EVENTS_ATTACHED,
        _EVENTS_STAGE_MAX,
        _EVENTS_STAGE_INVALID = -EINVAL,
} EventsStage;

/* What the VMM has taken on in the update that is under way; decides what a lost connection means. */
typedef enum Promise {
        PROMISE_NONE,
        PROMISE_ASKED,     /* it was asked to prepare or quiesce */
        PROMISE_QUIESCED,  /* it said Quiesced */
        PROMISE_COMMITTED, /* it may have said Committed */
        PROMISE_RESUMED,   /* after the jump: it may have said Resumed */
        _PROMISE_MAX,
        _PROMISE_INVALID = -EINVAL,
} Promise;

typedef enum EventType {
        EVENT_ATTACHED,
        EVENT_PREPARE,
        EVENT_QUIESCE,
        EVENT_COMMIT,
        EVENT_ABORT,
        EVENT_RESUME,
        EVENT_FINISHED,
        _EVENT_TYPE_MAX,
        _EVENT_TYPE_INVALID = -EINVAL,
} EventType;

struct luvfio {
        unsigned n_ref;
        char *machine;
        char *socket;
        char *vmm;
        char *secret;
        uint64_t timeout_usec;
        struct luvfio_handlers handlers;
        void *userdata;

        enum luvfio_state state;
        bool registered;
        uint64_t generation;
        struct luvfio_fd *fds;
        size_t n_fds;
        char *error;
        char *lost_reason; /* as last told */

        sd_varlink *calls;

        sd_varlink *events;
        uint32_t events_mask; /* what epoll waits for on it */
        EventsStage stage;
        Promise promise;
        EventType replayed; /* made up from the state at attach; luvfiod may send it too */
        bool processing;
        uint64_t retry_usec;
        int epoll_fd;
        int timer_fd;
        sd_event_source *source;
};

/* client.c */
_printf_(3, 4) int luv_client_fail(struct luvfio *l, int r, const char *format, ...);
int luv_client_connect(struct luvfio *l, sd_varlink **ret);
int luv_client_register_parameters(struct luvfio *l, sd_json_variant **ret);

/* client-events.c */
int luv_client_events_start(struct luvfio *l);
void luv_client_events_stop(struct luvfio *l);
void luv_client_events_process(struct luvfio *l);

/* client-wire.c */
const char *luv_client_get_string(sd_json_variant *object, const char *key);
bool luv_client_get_unsigned(sd_json_variant *object, const char *key, uint64_t *ret);
int luv_client_parse_state(sd_json_variant *v, enum luvfio_state *ret);
EventType luv_client_event_type_from_string(const char *s);
void luv_client_fd_done(struct luvfio_fd *fd);
int luv_client_parse_fd(sd_json_variant *v, struct luvfio_fd *ret);
int luv_client_parse_registration(struct luvfio *l, sd_json_variant *reply);
int luv_client_error(struct luvfio *l, const char *what, const char *error_id, sd_json_variant *parameters);
bool luv_client_secret_is_valid(const char *secret);
