/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <glib-unix.h>
#include <libvirt-glib/libvirt-glib.h>
#include <libvirt-gobject/libvirt-gobject.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <systemd/sd-daemon.h>

#include "agents/agent-libvirt/libvirt-private.h"
#include "util/log.h"
#include "util/string-util.h"

/*
 * Each domain that is to take part and runs has its agent, a unit luvfio-libvirt@NAME.service: enabled, so
 * that it is there after a jump, and survives the drain. One that was shut off has none any more.
 */

typedef struct Watch {
        GMainLoop *loop;
        GVirConnection *connection;
        virConnectPtr handle; /* the same, for what libvirt-glib does not have */
        int status;
} Watch;

static virDomainPtr handle_of(GVirDomain *domain)
{
        virDomainPtr handle = NULL;

        g_object_get(domain, "handle", &handle, NULL);
        return handle;
}

static bool takes_part(GVirDomain *domain)
{
        virDomainPtr handle = handle_of(domain);
        char *metadata;

        metadata = handle ? virDomainGetMetadata(handle, VIR_DOMAIN_METADATA_ELEMENT, LIBVIRT_METADATA_URI,
                                                 0)
                          : NULL;
        free(metadata);
        if (handle)
                virDomainFree(handle);
        return metadata != NULL;
}

static bool systemctl(const char *verb, const char *option, const char *unit)
{
        const char *argv[] = { "systemctl", "--quiet", "--no-block", verb, unit, option, NULL };
        GError *error = NULL;
        int status;

        if (!g_spawn_sync(NULL, (char **) argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, NULL, &status,
                          &error)) {
                luv_log_warning("systemctl %s %s: %s", verb, unit, error->message);
                g_error_free(error);
                return false;
        }
        return status == 0;
}

/* The unit of its agent; NULL: it cannot have one. */
static char *unit_of(const char *domain)
{
        /* A name that is none for a machine of luvfiod would not be one for a unit either. */
        if (luv_machine_name_valid(domain))
                return luv_strf("luvfio-libvirt@%s.service", domain);
        luv_log_warning("Domain \"%s\" cannot take part in live updates: its name has other characters than "
                        "A-Z a-z 0-9 _ . -, or more than 48",
                        domain);
        return NULL;
}

/* systemd loads all its units again after each "enable", while a guest may wait for it in a new kernel. */
static void take_part(const char *domain)
{
        _cleanup_free_ char *unit = unit_of(domain);

        if (unit && systemctl("is-enabled", NULL, unit))
                (void) systemctl("start", NULL, unit);
        else if (unit)
                (void) systemctl("enable", "--now", unit);
        /* It may have been started with what it is not to be started with again. */
        if (luv_libvirt_tidy(LIBVIRT_STATUS_DIR, false) > 0)
                (void) systemctl("start", NULL, "luvfio-libvirt-settle.service");
}

static void look_at(GVirDomain *domain)
{
        GVirDomainInfo *info = gvir_domain_get_info(domain, NULL);
        bool runs = info && info->state != GVIR_DOMAIN_STATE_SHUTOFF &&
                    info->state != GVIR_DOMAIN_STATE_CRASHED;

        if (info)
                g_boxed_free(GVIR_TYPE_DOMAIN_INFO, info);
        if (runs && takes_part(domain))
                take_part(gvir_domain_get_name(domain));
}

static void on_started(GVirDomain *domain, gpointer userdata)
{
        look_at(domain);
}

/* The agent ends by itself with its machine. */
static void on_stopped(GVirDomain *domain, gpointer userdata)
{
        _cleanup_free_ char *image = luv_strf(LIBVIRT_SAVE_DIR "/%s.save", gvir_domain_get_name(domain)),
                            *unit = unit_of(gvir_domain_get_name(domain));

        /* Not one that is on its way into another kernel. */
        if (image && unit && access(image, F_OK) < 0)
                (void) systemctl("disable", "--now", unit);
}

/* Said to take part while it runs, or not to any more. */
static void on_metadata(virConnectPtr handle, virDomainPtr changed, int type, const char *uri,
                        void *userdata)
{
        Watch *w = userdata;
        GVirDomain *domain;

        if (type != VIR_DOMAIN_METADATA_ELEMENT || g_strcmp0(uri, LIBVIRT_METADATA_URI))
                return;
        domain = gvir_connection_find_domain_by_name(w->connection, virDomainGetName(changed));
        if (!domain)
                return;
        if (takes_part(domain))
                look_at(domain);
        else
                on_stopped(domain, NULL);
        g_object_unref(domain);
}

static void watch(GVirDomain *domain)
{
        (void) g_signal_connect(domain, "started", G_CALLBACK(on_started), NULL);
        (void) g_signal_connect(domain, "updated", G_CALLBACK(on_started), NULL);
        (void) g_signal_connect(domain, "stopped", G_CALLBACK(on_stopped), NULL);
        look_at(domain);
}

static void on_added(GVirConnection *connection, GVirDomain *domain, gpointer userdata)
{
        watch(domain);
}

static void on_closed(virConnectPtr handle, int reason, void *userdata)
{
        Watch *w = userdata;

        luv_log_warning("libvirt has closed the connection");
        w->status = EXIT_FAILURE;
        g_main_loop_quit(w->loop);
}

static gboolean on_signal(gpointer userdata)
{
        Watch *w = userdata;

        g_main_loop_quit(w->loop);
        return G_SOURCE_REMOVE;
}

static int open_connection(Watch *w)
{
        GError *error = NULL;
        GList *domains;

        if (!gvir_connection_open(w->connection, NULL, &error) ||
            !gvir_connection_fetch_domains(w->connection, NULL, &error)) {
                luv_log(LOG_ERR, "libvirt cannot be reached: %s", error->message);
                g_error_free(error);
                return -ENOTCONN;
        }
        (void) g_signal_connect(w->connection, "domain-added", G_CALLBACK(on_added), w);
        g_object_get(w->connection, "handle", &w->handle, NULL);
        /* libvirt-glib's "connection-closed" is its own doing alone. */
        if (virConnectRegisterCloseCallback(w->handle, on_closed, w, NULL) < 0) {
                luv_log(LOG_ERR, "libvirt would not tell of its end: %s", virGetLastErrorMessage());
                return -EIO;
        }
        /* by way of void (*)(void), which compilers take for what it is: any function at all */
        if (virConnectDomainEventRegisterAny(w->handle, NULL, VIR_DOMAIN_EVENT_ID_METADATA_CHANGE,
                                             VIR_DOMAIN_EVENT_CALLBACK((void (*)(void)) on_metadata), w,
                                             NULL) < 0) {
                luv_log(LOG_ERR, "libvirt does not tell of changes of metadata: %s",
                        virGetLastErrorMessage());
                return -EIO;
        }
        domains = gvir_connection_get_domains(w->connection);
        for (GList *l = domains; l; l = l->next)
                watch(l->data);
        g_list_free_full(domains, g_object_unref);
        return 0;
}

int luv_libvirt_watch_run(void)
{
        Watch w = { .status = EXIT_SUCCESS };

        gvir_init(NULL, NULL);
        gvir_event_register();
        w.loop = g_main_loop_new(NULL, FALSE);
        w.connection = gvir_connection_new(LIBVIRT_URI);
        if (open_connection(&w) < 0)
                w.status = EXIT_FAILURE;
        else {
                (void) g_unix_signal_add(SIGTERM, on_signal, &w);
                (void) sd_notify(0, "READY=1");
                g_main_loop_run(w.loop);
        }
        if (w.handle)
                virConnectClose(w.handle);
        g_object_unref(w.connection);
        g_main_loop_unref(w.loop);
        return w.status;
}
