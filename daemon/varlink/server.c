/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <sys/epoll.h>

#include "config.h"
#include "machine/peer.h"
#include "report/messages.h"
#include "util/log.h"
#include "util/string-util.h"
#include "util/time-util.h"
#include "varlink/idl.h"
#include "varlink/server-private.h"

#define CONNECTIONS_MAX 16384u
#define CONNECTIONS_PER_USER_MAX 8192u

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
        if (r < 0) {
                luv_log_errno(LOG_WARNING, r, "A client (pid %i, uid %u) cannot be told, it is dropped",
                              (int) c->peer.pid, c->peer.uid);
                luv_connection_close(c);
        }
        return r;
}

static Connection *connection_free(Connection *c)
{
        if (!c)
                return NULL;
        if (c->pending_free)
                c->pending_free(c->pending);
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
                r = luv_peer_identify(uid, pid, sd_varlink_get_peer_pidfd(link), &c->peer);
        if (r >= 0)
                r = sd_varlink_set_allow_fd_passing_input(link, true);
        if (r >= 0 && c->of_machine)
                r = sd_varlink_set_allow_fd_passing_output(link, true);
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
        luv_auth_free(s->auth);
        free(s);
        return NULL;
}

int luv_server_listen(Server *s, const char *interface, int fd)
{
        return sd_varlink_server_listen_fd(streq(interface, LUVFIO_HOST_NAME) ? s->host : s->machine, fd);
}
