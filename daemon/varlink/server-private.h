/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "varlink/server.h"

/* What a connection waits for. One call at a time is dispatched on a connection. */
typedef enum Caller {
        CALLER_NONE,
        CALLER_PARKED, /* until it is known which machines came over the jump */
        CALLER_STAGE,
        CALLER_UPDATE,
        CALLER_ABORT,
        CALLER_DISCARD,
        CALLER_RESUMED, /* until nothing of the update is left */
        CALLER_MONITOR,
        CALLER_INHIBIT,
        CALLER_WATCH,
        CALLER_OTHER, /* pending has it */
} Caller;

struct Connection {
        Server *server;
        Connection *next, *previous;
        sd_varlink *link;    /* holds us as its userdata */
        bool of_machine;     /* which socket */
        sd_event_source *io; /* of a machine's; the host's are sd-varlink's own affair */
        bool touched;
        MachineOwner peer;
        char *proven; /* the machine whose secret was shown here */

        Caller caller;
        bool more;
        Machine *machine; /* watched, or resumed */
        char *who, *why;  /* inhibits */

        /* An answer that comes later; freed if the peer goes before. */
        void *pending;
        void (*pending_free)(void *pending);

        /* What a slow reader has not read, counted by turns of the event loop: nothing is written within
         * one. */
        uint64_t told_in;
        unsigned behind;
        uint64_t behind_since;
        bool doomed; /* closed as soon as nobody is in the middle of it */
};

struct Server {
        ServerConfig config;
        sd_varlink_server *host, *machine;
        Auth *auth;
        Connection *connections;
        sd_event_source *unpark, *reap, *touch;
};

/*
 * One of a stream of replies. A peer that does not read them is dropped, with a line in the log: it may cost
 * neither time nor memory.
 */
int luv_connection_notify(Connection *c, sd_json_variant *v);
void luv_connection_set_pending(Connection *c, void *pending, void (*pending_free)(void *pending));
/* Forgets it without freeing it. */
void luv_connection_clear_pending(Connection *c);
/* Whoever replies on a machine's connection later than in the method's own call says so. */
void luv_connection_touch(Connection *c);
/* Ends a stream that somebody else took over, or whose machine is gone. */
void luv_connection_close(Connection *c);

/*
 * The parameters of a method. 1: go on. Else the call is answered, or wants no answer and so could not be
 * told whether it was obeyed: what is to be returned comes back.
 */
int luv_dispatch(Connection *c, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                 const sd_json_dispatch_field *table, void *ret);
extern const sd_json_dispatch_field luv_no_parameters[];

/* "ab\x07c": whatever came, made harmless. */
char *luv_printable(const char *s);

/* varlink-host.c, varlink-machine.c, varlink-service.c */
int luv_server_bind_host(Server *s, sd_varlink_server *v);
int luv_server_bind_machine(Server *s, sd_varlink_server *v);
int luv_server_bind_service(sd_varlink_server *v);
void luv_host_disconnected(Connection *c);
void luv_machine_disconnected(Connection *c);
/* A Register that was parked. */
int luv_machine_again(Connection *c, sd_json_variant *parameters);
void luv_server_send_event(Machine *m, MachineEvent event, const char *update_id, uint64_t remaining_usec,
                           const char *reason);

/* varlink-json.c: typed things to JSON. */
int luv_findings_to_json(const Findings *f, sd_json_variant **ret);
int luv_report_to_json(const Report *r, bool with_phases, sd_json_variant **ret);
