/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <libvirt/libvirt.h>
#include <unistd.h>

#include "agents/agent-libvirt/libvirt-private.h"
#include "util/log.h"
#include "util/time-util.h"

/* What is being started would be lost if libvirt was. */
#define SETTLE_USEC (600 * USEC_PER_SEC)

static bool machines_come(void)
{
        sd_json_variant *machines, *state;
        sd_varlink *link = NULL;
        bool come = false;

        if (luv_libvirt_list_machines(&link, &machines) >= 0)
                for (size_t i = 0; i < sd_json_variant_elements(machines); i++) {
                        state = sd_json_variant_by_key(sd_json_variant_by_index(machines, i), "state");
                        come = come || (state && sd_json_variant_is_string(state) &&
                                        (streq(sd_json_variant_string(state), "restoring") ||
                                         streq(sd_json_variant_string(state), "resuming")));
                }
        sd_varlink_close_unref(link);
        return come;
}

/* Some of those that libvirt starts with the host are not there. */
static bool domains_come(void)
{
        virConnectPtr connection = virConnectOpenReadOnly(LIBVIRT_URI);
        int n;

        n = connection ? virConnectListAllDomains(connection, NULL,
                                                  VIR_CONNECT_LIST_DOMAINS_AUTOSTART |
                                                                  VIR_CONNECT_LIST_DOMAINS_INACTIVE)
                       : 0;
        if (connection)
                (void) virConnectClose(connection);
        return n > 0;
}

int luv_libvirt_settle_run(void)
{
        uint64_t deadline = luv_now_usec() + SETTLE_USEC;
        int n;

        while ((machines_come() || domains_come()) && luv_usec_left(deadline) > 0)
                (void) sleep(1);
        n = luv_libvirt_tidy(LIBVIRT_STATUS_DIR, false);
        if (n <= 0)
                return n < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
        luv_log_info("libvirt starts anew, to forget what %i domains were started with", n);
        /* Patterns: there is one or the other. */
        (void) execlp("systemctl", "systemctl", "try-restart", "libvirtd.servic[e]", "virtqemud.servic[e]",
                      NULL);
        luv_log_error(negative_errno(), "systemctl cannot be run; start libvirt's daemon anew by hand");
        return EXIT_FAILURE;
}
