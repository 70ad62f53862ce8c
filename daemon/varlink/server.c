/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <sys/epoll.h>

#include "config.h"
#include "machine/peer.h"
#include "report/messages.h"
#include "util/io.h"
#include "util/log.h"
#include "util/string-util.h"
#include "util/time-util.h"
#include "varlink/idl.h"
#include "varlink/server-private.h"

#define CONNECTIONS_MAX 16384u
#define CONNECTIONS_PER_USER_MAX 8192u

/* Steps of a connection (a read, a call, a write) before others have their turn. */
#define STEPS_AT_ONCE 16u

/* So many turns with replies, or so long, may a reader of a stream be behind. */
#define BEHIND_MAX 1024u
#define BEHIND_USEC (30 * USEC_PER_SEC)

void luv_connection_set_pending(Connection *c, void *pending, void (*pending_free)(void *pending))
{
        c->pending = pending;
        c->pending_free = pending_free;
}

void luv_connection_clear_pending(Connection *c)
{
        c->pending = NULL;
        c->pending_free = NULL;
}

/*
 * Machines' connections are not attached to the event loop by sd-varlink, which would have every turn of the
 * loop look at each of them: with thousands of machines that is all that luvfiod would do. They are looked
 * at when their socket has something and when something was sent.
 */
static void connection_work(Connection *c)
{
        sd_varlink *link = sd_varlink_ref(c->link);
        int events, r = 1;

        c->touched = false;
        /* An error makes the next step disconnect. */
        for (unsigned i = 0; i < STEPS_AT_ONCE && r != 0 && r != -ENOTCONN; i++)
                r = sd_varlink_process(link);
        events = sd_varlink_get_events(link);
        /* Otherwise C is gone. */
        if (events >= 0) {
                if (r != 0)
                        luv_connection_touch(c);
                r = sd_event_source_set_io_events(c->io, (uint32_t) events);
                if (r < 0) {
                        luv_log_error(r, "A connection cannot be watched, it is closed");
                        luv_connection_close(c);
                }
        }
        sd_varlink_unref(link);
}

static int on_io(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
        Connection *c = userdata;

        /* There is no other way to tell it. */
        if (revents & EPOLLHUP)
                (void) sd_varlink_wait(c->link, 0);
        connection_work(c);
        return 0;
}

static int on_touched(sd_event_source *source, void *userdata)
{
        Server *s = userdata;

        for (Connection *c = s->connections, *next; c; c = next) {
                next = c->next;
                if (c->touched)
                        connection_work(c);
        }
        return 0;
}

void luv_connection_touch(Connection *c)
{
        Server *s = c->server;
        int r = 0;

        if (!c->io || c->touched)
                return;
        c->touched = true;
        if (!s->touch)
                r = sd_event_add_defer(s->config.event, &s->touch, on_touched, s);
        if (r >= 0)
                r = sd_event_source_set_enabled(s->touch, SD_EVENT_ONESHOT);
        if (r < 0) {
                luv_log_error(r, "A client cannot be answered, its connection is closed");
                luv_connection_close(c);
        }
}

static int take_from_loop(Connection *c)
{
        int fd = sd_varlink_get_fd(c->link);

        if (fd < 0)
                return fd;
        sd_varlink_detach_event(c->link);
        return sd_event_add_io(c->server->config.event, &c->io, fd, EPOLLIN, on_io, c);
}

static int on_reap(sd_event_source *s, void *userdata)
{
        Server *server = userdata;
        Connection *c = server->connections;

        while (c) {
                sd_varlink *link;

                if (!c->doomed) {
                        c = c->next;
                        continue;
                }
                link = sd_varlink_ref(c->link);
                (void) sd_varlink_close(link);
                sd_varlink_unref(link);
                /* Closing one may have doomed others. */
                c = server->connections;
        }
        return 0;
}

void luv_connection_close(Connection *c)
{
        Server *s = c->server;
        int r = 0;

        c->doomed = true;
        if (!s->reap) {
                r = sd_event_add_defer(s->config.event, &s->reap, on_reap, s);
                if (r >= 0)
                        r = sd_event_source_set_priority(s->reap, SD_EVENT_PRIORITY_IMPORTANT);
        }
        if (r >= 0)
                r = sd_event_source_set_enabled(s->reap, SD_EVENT_ONESHOT);
        if (r < 0)
                luv_log_error(r, "A connection that should be closed stays open");
}

int luv_connection_notify(Connection *c, sd_json_variant *v)
{
        uint64_t now = luv_now_usec(), turn = 0;
        int events, r;

        if (c->doomed)
                return -ENOTCONN;
        (void) sd_event_get_iteration(c->server->config.event, &turn);
        if (turn != c->told_in) {
                c->told_in = turn;
                events = sd_varlink_get_events(c->link);
                if (events < 0 || !(events & EPOLLOUT))
                        c->behind = 0;
                else if (c->behind++ == 0)
                        c->behind_since = now;
        }
        if (c->behind > BEHIND_MAX || (c->behind > 0 && now - c->behind_since > BEHIND_USEC)) {
                luv_log_struct(LOG_WARNING,
                               &(LogFields) {
                                               .message_id = LUVFIO_MESSAGE_CLIENT_DROPPED,
                                               .machine = c->caller == CALLER_WATCH && c->machine
                                                                          ? c->machine->name
                                                                          : NULL,
                               },
                               "A client (pid %i, uid %u) does not read what it asked for and is dropped",
                               (int) c->peer.pid, c->peer.uid);
                luv_connection_close(c);
                return -EPIPE;
        }
        r = sd_varlink_notify(c->link, v);
        luv_connection_touch(c);
        if (r < 0) {
                luv_log_errno(LOG_WARNING, r, "A client (pid %i, uid %u) cannot be told, it is dropped",
                              (int) c->peer.pid, c->peer.uid);
                luv_connection_close(c);
        }
        return r;
}

const sd_json_dispatch_field luv_no_parameters[] = { {} };

int luv_dispatch(Connection *c, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                 const sd_json_dispatch_field *table, void *ret)
{
        int r;

        if (flags & SD_VARLINK_METHOD_ONEWAY)
                return 0;
        r = sd_varlink_dispatch(c->link, parameters, table, ret);
        return r == 0 ? 1 : MIN(r, 0);
}

static Connection *connection_free(Connection *c)
{
        if (!c)
                return NULL;
        if (c->pending_free)
                c->pending_free(c->pending);
        sd_event_source_disable_unref(c->io);
        sd_varlink_unref(c->link);
        luv_machine_owner_done(&c->peer);
        free(c->proven);
        free(c->who);
        free(c->why);
        free(c);
        return NULL;
}
DEFINE_CLEANUP(Connection *, connection_free);

static int on_connect(sd_varlink_server *v, sd_varlink *link, void *userdata)
{
        _cleanup_(connection_freep) Connection *c = NULL;
        _cleanup_close_ int pidfd = -EBADF;
        Server *s = userdata;
        uid_t uid;
        pid_t pid;
        int r;

        c = calloc(1, sizeof(Connection));
        if (!c)
                return -ENOMEM;
        c->server = s;
        /* Held: a call that is answered later is taken for a fault if nobody keeps the link. */
        c->link = sd_varlink_ref(link);
        c->peer.pidfd = -EBADF;
        c->of_machine = v == s->machine;
        r = sd_varlink_get_peer_uid(link, &uid);
        if (r >= 0)
                r = sd_varlink_get_peer_pid(link, &pid);
        if (r >= 0)
                pidfd = luv_peer_open(sd_varlink_get_fd(link), pid);
        if (r >= 0)
                r = luv_peer_identify(uid, pid, pidfd, &c->peer);
        /* One for each machine is enough: it is opened again where somebody registers. */
        if (c->of_machine)
                c->peer.pidfd = safe_close(c->peer.pidfd);
        if (r >= 0)
                r = sd_varlink_set_allow_fd_passing_input(link, true);
        if (r >= 0 && c->of_machine)
                r = sd_varlink_set_allow_fd_passing_output(link, true);
        if (r >= 0 && c->of_machine)
                r = take_from_loop(c);
        if (r < 0)
                return luv_log_error(r, "A connection is refused");
        if (c->of_machine)
                (void) sd_varlink_set_input_sensitive(link);
        c->next = s->connections;
        if (c->next)
                c->next->previous = c;
        s->connections = c;
        sd_varlink_set_userdata(link, TAKE_PTR(c));
        return 0;
}

static void on_disconnect(sd_varlink_server *v, sd_varlink *link, void *userdata)
{
        Connection *c = sd_varlink_get_userdata(link);

        /* Refused when it came. */
        if (!c || c->server != userdata)
                return;
        sd_varlink_set_userdata(link, c->server);
        if (c->previous)
                c->previous->next = c->next;
        else
                c->server->connections = c->next;
        if (c->next)
                c->next->previous = c->previous;
        c->next = c->previous = NULL;
        if (c->of_machine)
                luv_machine_disconnected(c);
        else
                luv_host_disconnected(c);
        connection_free(c);
}

static int server_new(Server *s, bool of_machine, sd_varlink_server **ret)
{
        _cleanup_(sd_varlink_server_unrefp) sd_varlink_server *v = NULL;
        int r;

        r = sd_varlink_server_new(&v, SD_VARLINK_SERVER_ACCOUNT_UID);
        if (r >= 0)
                r = sd_varlink_server_set_info(v, "luvfiod", of_machine ? "Machines" : "Host",
                                               LUVFIO_VERSION, NULL);
        if (r >= 0)
                r = sd_varlink_server_set_description(v, of_machine ? "machines" : "host");
        if (r >= 0)
                r = sd_varlink_server_set_connections_max(v, CONNECTIONS_MAX);
        if (r >= 0)
                r = sd_varlink_server_set_connections_per_uid_max(v, CONNECTIONS_PER_USER_MAX);
        if (r >= 0)
                r = sd_varlink_server_bind_connect(v, on_connect);
        if (r >= 0)
                r = sd_varlink_server_bind_disconnect(v, on_disconnect);
        if (r >= 0)
                r = of_machine ? luv_server_bind_machine(s, v) : luv_server_bind_host(s, v);
        if (r >= 0)
                r = luv_server_bind_service(v);
        if (r >= 0)
                r = sd_varlink_server_attach_event(v, s->config.event, SD_EVENT_PRIORITY_NORMAL);
        if (r < 0)
                return r;
        sd_varlink_server_set_userdata(v, s);
        *ret = TAKE_PTR(v);
        return 0;
}

int luv_server_new(const ServerConfig *config, Server **ret)
{
        _cleanup_(luv_server_freep) Server *s = NULL;
        int r;

        s = calloc(1, sizeof(Server));
        if (!s)
                return -ENOMEM;
        s->config = *config;
        r = luv_auth_new(config->event, config->simulated, &s->auth);
        if (r >= 0)
                r = server_new(s, false, &s->host);
        if (r >= 0)
                r = server_new(s, true, &s->machine);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(s);
        return 0;
}

Server *luv_server_free(Server *s)
{
        if (!s)
                return NULL;
        while (s->connections) {
                sd_varlink *link = sd_varlink_ref(s->connections->link);

                (void) sd_varlink_close(link);
                sd_varlink_unref(link);
        }
        sd_varlink_server_unref(s->host);
        sd_varlink_server_unref(s->machine);
        sd_event_source_disable_unref(s->unpark);
        sd_event_source_disable_unref(s->reap);
        sd_event_source_disable_unref(s->touch);
        luv_auth_free(s->auth);
        free(s);
        return NULL;
}

int luv_server_listen(Server *s, const char *interface, int fd)
{
        return sd_varlink_server_listen_fd(streq(interface, LUVFIO_HOST_NAME) ? s->host : s->machine, fd);
}
