/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <sys/epoll.h>
#include <sys/timerfd.h>

#include "lib/client.h"

#define RETRY_MIN_USEC (100 * USEC_PER_MSEC)
#define RETRY_MAX_USEC (2 * USEC_PER_SEC)

typedef void (*Handler)(struct luvfio *l, const struct luvfio_event *event, void *userdata);

static void link_drop(struct luvfio *l)
{
        if (!l->events)
                return;
        if (l->events_mask != 0)
                (void) epoll_ctl(l->epoll_fd, EPOLL_CTL_DEL, sd_varlink_get_fd(l->events), NULL);
        l->events_mask = 0;
        (void) sd_varlink_set_userdata(l->events, NULL);
        l->events = sd_varlink_close_unref(l->events);
}

static void timer_set(struct luvfio *l, uint64_t usec)
{
        struct itimerspec its = {
                .it_value = {
                        .tv_sec = (time_t) (usec / USEC_PER_SEC),
                        .tv_nsec = (long) (usec % USEC_PER_SEC * NSEC_PER_USEC),
                },
        };

        (void) timerfd_settime(l->timer_fd, 0, &its, NULL);
}

void luv_client_events_stop(struct luvfio *l)
{
        link_drop(l);
        if (l->timer_fd >= 0)
                timer_set(l, 0);
        l->stage = EVENTS_OFF;
        l->promise = PROMISE_NONE;
        l->replayed = _EVENT_TYPE_INVALID;
}

static void deliver(struct luvfio *l, EventType type, const struct luvfio_event *event)
{
        const Handler handlers[] = {
                [EVENT_ATTACHED] = l->handlers.attached, [EVENT_PREPARE] = l->handlers.prepare,
                [EVENT_QUIESCE] = l->handlers.quiesce,   [EVENT_COMMIT] = l->handlers.commit,
                [EVENT_ABORT] = l->handlers.abort,       [EVENT_RESUME] = l->handlers.resume,
                [EVENT_FINISHED] = l->handlers.finished,
        };

        switch (type) {
        case EVENT_PREPARE:
        case EVENT_QUIESCE:
                l->promise = PROMISE_ASKED;
                break;
        case EVENT_COMMIT:
                /* Asked of a machine that has not quiesced, or has resumed by itself meanwhile: it runs, so
                 * luvfiod gets no answer and aborts. */
                if (l->promise != PROMISE_QUIESCED && l->promise != PROMISE_COMMITTED)
                        return;
                break;
        case EVENT_ABORT:
        case EVENT_RESUME:
        case EVENT_FINISHED:
                l->promise = PROMISE_NONE;
                break;
        case EVENT_ATTACHED:
        default:
                break;
        }
        /* A callback before this one may have dropped the object, and its userdata with it. */
        if (handlers[type] && l->n_ref > 1)
                handlers[type](l, event, l->userdata);
}

/* The state that luvfiod has the machine in tells what it is waiting for; a VMM that was away when the event
 * was sent has missed it. */
static void replay_missed(struct luvfio *l, const struct luvfio_event *event)
{
        EventType type = _EVENT_TYPE_INVALID;

        switch (event->state) {
        case LUVFIO_STATE_RUNNING:
                /* luvfiod has ended the update while this VMM was away: the one that it came from, or the
                 * one for which it stands. */
                if (l->promise == PROMISE_RESUMED)
                        type = EVENT_FINISHED;
                else if (l->promise != PROMISE_NONE)
                        type = EVENT_ABORT;
                break;
        case LUVFIO_STATE_PREPARING:
                type = EVENT_PREPARE;
                break;
        case LUVFIO_STATE_QUIESCING:
                type = EVENT_QUIESCE;
                break;
        case LUVFIO_STATE_ABORTING:
                type = EVENT_ABORT;
                break;
        case LUVFIO_STATE_RESUMING:
                type = EVENT_RESUME;
                break;
        case LUVFIO_STATE_PREPARED:
        case LUVFIO_STATE_QUIESCED:
        case LUVFIO_STATE_COMMITTED:
        case LUVFIO_STATE_RESTORING:
        case LUVFIO_STATE_STRANDED:
        default:
                break;
        }
        l->replayed = type;
        if (type >= 0)
                deliver(l, type, event);
}

static void lost(struct luvfio *l, const char *reason, bool refused)
{
        /* The text may be the connection's, or that of the last error. */
        _cleanup_free_ char *text = strdup(reason);
        /* Trying again for hours is told once, and again where luvfiod is there but says no. */
        bool tell = l->stage == EVENTS_ATTACHED || (refused && !streq_ptr(text, l->lost_reason));

        link_drop(l);
        l->stage = EVENTS_WAITING;
        l->replayed = _EVENT_TYPE_INVALID;
        timer_set(l, l->retry_usec);
        l->retry_usec = MIN(l->retry_usec * 2, RETRY_MAX_USEC);

        if (tell && l->handlers.lost && l->n_ref > 1) {
                l->handlers.lost(l, strempty(text), l->userdata);
                free(l->lost_reason);
                l->lost_reason = TAKE_PTR(text);
        }

        if (l->promise == PROMISE_ASKED || l->promise == PROMISE_QUIESCED) {
                struct luvfio_event event = {
                        .state = LUVFIO_STATE_RUNNING,
                        .remaining_usec = UINT64_MAX,
                        .reason = "the connection to luvfiod was lost before the update was committed",
                };

                l->state = LUVFIO_STATE_RUNNING;
                deliver(l, EVENT_ABORT, &event);
        }
}

static void on_event(struct luvfio *l, sd_json_variant *parameters)
{
        EventType type = luv_client_event_type_from_string(luv_client_get_string(parameters, "event"));
        struct luvfio_event event = {
                .update_id = luv_client_get_string(parameters, "updateId"),
                .reason = luv_client_get_string(parameters, "reason"),
                .remaining_usec = UINT64_MAX,
        };

        (void) luv_client_get_unsigned(parameters, "remainingUSec", &event.remaining_usec);
        /* A later luvfiod may know more events; what is not understood is not answered. */
        if (type < 0 || luv_client_parse_state(parameters, &event.state) < 0)
                return;
        l->state = event.state;

        if (type == EVENT_ATTACHED) {
                l->stage = EVENTS_ATTACHED;
                l->retry_usec = RETRY_MIN_USEC;
                free(l->lost_reason);
                l->lost_reason = NULL;
                deliver(l, type, &event);
                /* The callback may have withdrawn the machine. */
                if (l->stage == EVENTS_ATTACHED)
                        replay_missed(l, &event);
                return;
        }
        if (type == l->replayed) {
                l->replayed = _EVENT_TYPE_INVALID;
                return;
        }
        l->replayed = _EVENT_TYPE_INVALID;
        deliver(l, type, &event);
}

static int on_reply(sd_varlink *link, sd_json_variant *parameters, const char *error_id,
                    sd_varlink_reply_flags_t flags, void *userdata)
{
        struct luvfio *l = userdata;

        /* Dropped in a callback of this very object. */
        if (!l || l->events != link)
                return 0;

        if (error_id) {
                (void) luv_client_error(l, l->stage == EVENTS_REGISTERING ? "Register" : "Watch", error_id,
                                        parameters);
                lost(l, strempty(l->error), !streq(error_id, SD_VARLINK_ERROR_DISCONNECTED));
                return 0;
        }
        if (l->stage == EVENTS_REGISTERING) {
                if (luv_client_parse_registration(l, parameters) < 0)
                        lost(l, "Register: luvfiod's answer makes no sense", true);
                else
                        l->stage = EVENTS_WATCHING; /* Watch is sent when this reply is done with */
                return 0;
        }
        on_event(l, parameters);
        if (l->events == link && !(flags & SD_VARLINK_REPLY_CONTINUES))
                lost(l, "luvfiod ended the Watch: another watches the machine", false);
        return 0;
}

static int watch_send(struct luvfio *l)
{
        sd_json_variant *parameters = NULL;
        int r;

        r = sd_json_buildo(&parameters, SD_JSON_BUILD_PAIR_STRING("name", l->machine),
                           SD_JSON_BUILD_PAIR_CONDITION(!!l->secret, "secret",
                                                        SD_JSON_BUILD_STRING(l->secret)));
        if (r >= 0)
                r = sd_varlink_observe(l->events, CLIENT_INTERFACE ".Watch", parameters);
        sd_json_variant_unref(parameters);
        return r;
}

static int register_send(struct luvfio *l)
{
        sd_json_variant *parameters = NULL;
        int r;

        r = luv_client_register_parameters(l, &parameters);
        if (r >= 0)
                r = sd_varlink_invoke(l->events, CLIENT_INTERFACE ".Register", parameters);
        sd_json_variant_unref(parameters);
        return r;
}

/* Tells epoll what the connection waits for. */
static int link_poll(struct luvfio *l)
{
        struct epoll_event ev = {};
        int r, fd;

        if (!l->events)
                return 0;
        fd = sd_varlink_get_fd(l->events);
        r = sd_varlink_get_events(l->events);
        if (fd < 0 || r < 0)
                return fd < 0 ? fd : r;
        /* Never nothing: the end of the connection is to be seen, too. */
        ev.events = (uint32_t) r | EPOLLIN;
        if (ev.events == l->events_mask)
                return 0;
        if (epoll_ctl(l->epoll_fd, l->events_mask ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &ev) < 0)
                return negative_errno();
        l->events_mask = ev.events;
        return 0;
}

static int link_open(struct luvfio *l)
{
        int r;

        r = luv_client_connect(l, &l->events);
        if (r < 0)
                return r;
        (void) sd_varlink_set_userdata(l->events, l);
        /* Between two events years may pass. */
        (void) sd_varlink_set_relative_timeout(l->events, UINT64_MAX);
        return sd_varlink_bind_reply(l->events, on_reply);
}

int luv_client_events_start(struct luvfio *l)
{
        int r;

        luv_client_events_stop(l);
        l->retry_usec = RETRY_MIN_USEC;
        r = link_open(l);
        if (r >= 0) {
                l->stage = EVENTS_WATCHING;
                r = watch_send(l);
        }
        /* The loop may be a while away yet; luvfiod is to know at once that somebody listens. */
        if (r >= 0)
                r = sd_varlink_flush(l->events);
        if (r >= 0)
                r = link_poll(l);
        if (r < 0) {
                luv_client_events_stop(l);
                return luv_client_fail(l, r == -ENOMEM ? r : -ENOTCONN, "Watch machine '%s': %s", l->machine,
                                       strerror(-r));
        }
        return 0;
}

static void reconnect(struct luvfio *l)
{
        int r;

        r = link_open(l);
        if (r >= 0) {
                l->stage = EVENTS_REGISTERING;
                r = register_send(l);
        }
        if (r < 0) {
                if (l->stage != EVENTS_REGISTERING)
                        l->stage = EVENTS_WAITING;
                lost(l, strempty(l->error), false);
        }
}

void luv_client_events_process(struct luvfio *l)
{
        uint64_t expirations;
        int r;

        if (read(l->timer_fd, &expirations, sizeof(expirations)) == sizeof(expirations) &&
            l->stage == EVENTS_WAITING)
                reconnect(l);

        while (l->events) {
                sd_varlink *link = sd_varlink_ref(l->events);
                EventsStage stage = l->stage;

                r = sd_varlink_process(link);
                sd_varlink_unref(link);
                if (l->events != link)
                        continue;
                if (r < 0) {
                        lost(l, strerror(-r), false);
                        break;
                }
                if (stage == EVENTS_REGISTERING && l->stage == EVENTS_WATCHING) {
                        r = watch_send(l);
                        if (r < 0) {
                                lost(l, strerror(-r), false);
                                break;
                        }
                        continue;
                }
                if (r == 0)
                        break;
        }

        r = link_poll(l);
        if (r < 0)
                lost(l, strerror(-r), false);
}
