/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <systemd/sd-varlink.h>

#include "agents/agent-libvirt/libvirt-private.h"
#include "util/io.h"
#include "util/string-util.h"

/*
 * libvirt asks its hooks before it starts a domain. A domain that is still to be put together after a jump
 * must not be started afresh: its memory is another, and its device runs. Nor may another domain have that
 * device.
 */

#define HOST_SOCKET "/run/luvfiod/org.luvfio.Host"
#define LIST_MACHINES "org.luvfio.Host.ListMachines"
#define XML_SIZE_MAX ((size_t) 16 * 1024 * 1024)
#define TIMEOUT_USEC (10 * USEC_PER_SEC)

static const char *string_at(sd_json_variant *v, const char *key)
{
        v = sd_json_variant_by_key(v, key);
        return v && sd_json_variant_is_string(v) ? sd_json_variant_string(v) : "";
}

/* Its vCPUs stand, and somebody is about to let them run elsewhere. */
static bool is_pending(sd_json_variant *machine)
{
        static const char *const states[] = { "quiescing", "quiesced", "committed",
                                              "restoring", "resuming", "stranded" };

        for (size_t i = 0; i < ELEMENTSOF(states); i++)
                if (streq(string_at(machine, "state"), states[i]))
                        return true;
        return false;
}

static bool has_device(sd_json_variant *machine, const char *address)
{
        sd_json_variant *devices = sd_json_variant_by_key(machine, "devices");

        for (size_t i = 0; devices && i < sd_json_variant_elements(devices); i++) {
                sd_json_variant *x = sd_json_variant_by_index(devices, i);

                if (sd_json_variant_is_string(x) && streq(sd_json_variant_string(x), address))
                        return true;
        }
        return false;
}

static bool has_image(const char *domain)
{
        _cleanup_free_ char *path = luv_strf(LIBVIRT_SAVE_DIR "/%s.save", domain);

        return path && access(path, F_OK) == 0;
}

/* 1: it may start. Why it may not is said. */
static int judge(sd_json_variant *machines, const char *domain, const LibvirtXml *xml)
{
        for (size_t i = 0; i < sd_json_variant_elements(machines); i++) {
                sd_json_variant *m = sd_json_variant_by_index(machines, i);
                const char *name = string_at(m, "name");

                if (streq(name, domain)) {
                        if (!is_pending(m) || has_image(domain))
                                continue;
                        (void) fprintf(stderr,
                                       "luvfiod: domain %s is %s in a live update of the host, and must not "
                                       "be started "
                                       "afresh; see \"luvfioctl machines\"\n",
                                       domain, string_at(m, "state"));
                        return 0;
                }
                for (char **d = xml->devices; d && *d; d++)
                        if (has_device(m, *d)) {
                                (void) fprintf(stderr,
                                               "luvfiod: device %s belongs to machine %s, which is %s\n", *d,
                                               name, string_at(m, "state"));
                                return 0;
                        }
        }
        return 1;
}

int luv_libvirt_list_machines(sd_varlink **ret_link, sd_json_variant **ret)
{
        const char *socket = secure_getenv("LUVFIO_HOST_SOCKET"), *error = NULL;
        sd_json_variant *reply;
        int r;

        r = sd_varlink_connect_address(ret_link, socket ? socket : HOST_SOCKET);
        if (r >= 0)
                r = sd_varlink_set_relative_timeout(*ret_link, TIMEOUT_USEC);
        if (r >= 0)
                r = sd_varlink_call(*ret_link, LIST_MACHINES, NULL, &reply, &error);
        if (r < 0 || error)
                return r < 0 ? r : -EREMOTEIO;
        *ret = sd_json_variant_by_key(reply, "machines");
        return *ret ? 0 : -EBADMSG;
}

int luv_libvirt_hook_run(const char *domain, const char *operation, const char *part)
{
        _cleanup_(luv_libvirt_xml_done) LibvirtXml x = {};
        _cleanup_free_ char *xml = NULL, *reason = NULL;
        sd_json_variant *machines;
        sd_varlink *link = NULL;
        size_t size;
        int r;

        if (!streq(operation, "prepare") || !streq(part, "begin"))
                return EXIT_SUCCESS;
        r = luv_read_fd(STDIN_FILENO, XML_SIZE_MAX, &xml, &size);
        if (r >= 0)
                r = luv_libvirt_xml_parse(xml, &x, &reason);
        if (r < 0) {
                (void) fprintf(stderr, "luvfiod: domain %s: %s\n", domain, reason ? reason : strerror(-r));
                return EXIT_FAILURE;
        }
        r = luv_libvirt_list_machines(&link, &machines);
        /* A host without luvfiod has nothing to lose by it. */
        r = r < 0 ? 1 : judge(machines, domain, &x);
        sd_varlink_close_unref(link);
        return r > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
