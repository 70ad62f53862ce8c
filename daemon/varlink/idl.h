/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-varlink-idl.h>

/* The interfaces; `varlinkctl introspect` on a running daemon prints them with their comments. */

extern const sd_varlink_interface vl_interface_org_luvfio_Host;
extern const sd_varlink_interface vl_interface_org_luvfio_Machine;
extern const sd_varlink_interface vl_interface_org_luvfio_Plugin;

#define LUVFIO_HOST_SOCKET "/run/luvfiod/org.luvfio.Host"
#define LUVFIO_MACHINE_SOCKET "/run/luvfiod/org.luvfio.Machine"
#define LUVFIO_PLUGIN_SOCKET_DIR "/run/luvfiod/plugin"

#define VL_ERROR_HOST(name) "org.luvfio.Host." name
#define VL_ERROR_MACHINE(name) "org.luvfio.Machine." name
#define VL_ERROR_PLUGIN(name) "org.luvfio.Plugin." name
