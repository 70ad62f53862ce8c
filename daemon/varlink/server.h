/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-varlink.h>

#include "machine/machine.h"
#include "report/report.h"
#include "update/update.h"
#include "varlink/auth.h"

/* Both sockets: connections, what is said over them, and who hears of what. */

#define LUVFIO_HOST_NAME "org.luvfio.Host"
#define LUVFIO_MACHINE_NAME "org.luvfio.Machine"

typedef struct Server Server;
typedef struct Connection Connection;

typedef struct ServerConfig {
        sd_event *event;
        Update *update;
        MachineRegistry *machines;
        Luo *luo;
        PluginManager *plugins;
        bool simulated;
        const char *state_dir;
} ServerConfig;

int luv_server_new(const ServerConfig *config, Server **ret);
Server *luv_server_free(Server *s);
DEFINE_CLEANUP(Server *, luv_server_free);
/* A listening socket for INTERFACE (one of the names above); taken over. */
int luv_server_listen(Server *s, const char *interface, int fd);

/* The update's callbacks. USERDATA: the server. */
extern const UpdateCallbacks luv_server_update_callbacks;
/* A machine is gone: nobody watches it any more. */
void luv_server_machine_forgotten(Server *s, Machine *m);
