/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sys/types.h>
#include <systemd/sd-varlink.h>

#include "agents/qemu-document.h"
#include "util/macro.h"

/*
 * luvfio-libvirt: domains of libvirt through a live update. Several programs in one:
 *
 *     --domain NAME   an agent for one domain, the same as luvfio-qemu but that QEMU is libvirt's
 * (libvirt-domain.c)
 *     --monitor NAME  what that speaks to in place of QEMU's monitor (libvirt-monitor.c); only here, and in
 *     --hook          what libvirt asks before it starts a domain (libvirt-hook.c)
 *     --watch         which starts and ends agents (libvirt-watch.c), are GLib and libvirt
 *     --tidy, --settle  so that libvirt forgets what a domain was started with (libvirt-settle.c)
 *
 * libvirt-image.c is about saved machines as libvirt has them on disk, and their XML.
 */

#define LIBVIRT_URI "qemu:///system"
#define LIBVIRT_SAVE_DIR "/var/lib/libvirt/qemu/save"
#define LIBVIRT_STATUS_DIR "/run/libvirt/qemu"
#define LIBVIRT_RUNTIME_DIR "/run/luvfio-libvirt"

/* An element of this in a domain's metadata means that it is to take part. */
#define LIBVIRT_METADATA_URI "https://luvfio.org/xmlns/libvirt/domain/1.0"

/*
 * Commands of --monitor beside QEMU's, and what they return:
 *     x-luvfio-domain   {name, uuid, active, pid, xml}; pid and xml of one that is active
 *     x-luvfio-start    as virsh start: from its saved image, if there is one; returns when it runs
 *     x-luvfio-destroy  as virsh destroy
 */
#define LIBVIRT_COMMAND_DOMAIN "x-luvfio-domain"
#define LIBVIRT_COMMAND_START "x-luvfio-start"
#define LIBVIRT_COMMAND_DESTROY "x-luvfio-destroy"

/* For socket FD, in place of QEMU. Returns an exit code when that is closed. */
int luv_libvirt_monitor_run(const char *domain, int fd);
/* What libvirt asks before it does OPERATION, PART of it; the domain's XML is on standard input. An exit
 * code. */
int luv_libvirt_hook_run(const char *domain, const char *operation, const char *part);
/* Until SIGTERM. An exit code. */
int luv_libvirt_watch_run(void);
/*
 * Waits until nothing is being started, and has libvirt start anew if there is anything that it is to
 * forget: see luv_libvirt_tidy(). An exit code.
 */
int luv_libvirt_settle_run(void);
/* luvfiod's, as org.luvfio.Host.ListMachines has them; *RET is *RET_LINK's. */
int luv_libvirt_list_machines(sd_varlink **ret_link, sd_json_variant **ret);

/*
 * What libvirt starts a domain from: its XML, changed so that QEMU takes what CPR hands over at the socket
 * CPR_PATH, and the state that QEMU has sent. -EBADMSG: XML is no domain's; -errno; with a sentence.
 */
int luv_libvirt_image_write(const char *path, const char *xml, const char *cpr_path, int stream_fd,
                            uint64_t stream_size, bool running, char **ret_reason);
/* Just the XML; a new string. */
int luv_libvirt_image_xml(const char *xml, const char *cpr_path, char **ret, char **ret_reason);

/*
 * A domain's status as libvirt has it on disk while it runs still has what luv_libvirt_image_xml() added,
 * with which the domain could not be started a second time. Takes that out of each in DIR, if WRITE;
 * libvirt, which must not be running, reads them as it starts. Returns in how many it was; -errno.
 */
int luv_libvirt_tidy(const char *dir, bool write);

/* What of a domain's XML has to be known. */
typedef struct LibvirtXml {
        char **devices;    /* PCI addresses of those that it is given */
        char **managed;    /* those that libvirt gives back to their drivers */
        char **no_iommufd; /* those that QEMU has by their group */
} LibvirtXml;

void luv_libvirt_xml_done(LibvirtXml *x);
int luv_libvirt_xml_parse(const char *xml, LibvirtXml *ret, char **ret_reason);
