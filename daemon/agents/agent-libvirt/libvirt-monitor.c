/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <glib-unix.h>
#include <glib.h>
#include <libvirt-glib/libvirt-glib.h>
#include <libvirt/libvirt-qemu.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <sys/socket.h>
#include <systemd/sd-json.h>

#include "agents/agent-libvirt/libvirt-private.h"
#include "util/io.h"
#include "util/log.h"
#include "util/string-util.h"

/* Speaks QMP on a socket for a domain whose monitor is libvirt's. */

#define LINE_MAX_SIZE ((size_t) 16 * 1024 * 1024)

typedef struct Monitor {
        int fd;
        GMainLoop *loop;
        virConnectPtr connection;
        virDomainPtr domain;
        GString *input;
        int status;
} Monitor;

static void quit(Monitor *m, int status)
{
        m->status = status;
        g_main_loop_quit(m->loop);
}

/* Takes V. */
static void say(Monitor *m, sd_json_variant *v)
{
        _cleanup_free_ char *text = NULL, *line = NULL;

        if (v && sd_json_variant_format(v, 0, &text) >= 0)
                line = luv_strf("%s\n", text);
        sd_json_variant_unref(v);
        if (!line || luv_write_all(m->fd, line, strlen(line)) < 0)
                quit(m, EXIT_FAILURE);
}

static void answer(Monitor *m, sd_json_variant *id, sd_json_variant *result /* taken */)
{
        sd_json_variant *v = NULL;

        (void) sd_json_buildo(&v, SD_JSON_BUILD_PAIR_VARIANT("return", result),
                              SD_JSON_BUILD_PAIR_CONDITION(id != NULL, "id", SD_JSON_BUILD_VARIANT(id)));
        sd_json_variant_unref(result);
        say(m, v);
}

static void refuse(Monitor *m, sd_json_variant *id, const char *why)
{
        sd_json_variant *v = NULL;

        (void) sd_json_buildo(
                        &v,
                        SD_JSON_BUILD_PAIR("error",
                                           SD_JSON_BUILD_OBJECT(SD_JSON_BUILD_PAIR_STRING("class",
                                                                                          "GenericError"),
                                                                SD_JSON_BUILD_PAIR_STRING("desc", why))),
                        SD_JSON_BUILD_PAIR_CONDITION(id != NULL, "id", SD_JSON_BUILD_VARIANT(id)));
        say(m, v);
}

static const char *last_error(void)
{
        const virError *e = virGetLastError();

        return e && e->message ? e->message : "libvirt does not say why";
}

/* As libvirt itself has it; there is no call that would tell. */
static uint64_t pid_of(virDomainPtr domain)
{
        _cleanup_free_ char *path = luv_strf("/run/libvirt/qemu/%s.pid", virDomainGetName(domain)),
                            *line = NULL;
        uint64_t pid;

        return path && luv_read_line_file(AT_FDCWD, path, &line) >= 0 && luv_parse_u64(line, &pid) >= 0 ? pid
                                                                                                        : 0;
}

static void tell_domain(Monitor *m, sd_json_variant *id)
{
        int active = virDomainIsActive(m->domain);
        char uuid[VIR_UUID_STRING_BUFLEN] = "", *xml = NULL;
        sd_json_variant *v = NULL;

        if (active < 0 || virDomainGetUUIDString(m->domain, uuid) < 0) {
                refuse(m, id, last_error());
                return;
        }
        if (active > 0)
                xml = virDomainGetXMLDesc(m->domain, VIR_DOMAIN_XML_SECURE | VIR_DOMAIN_XML_MIGRATABLE);
        (void) sd_json_buildo(&v, SD_JSON_BUILD_PAIR_STRING("name", virDomainGetName(m->domain)),
                              SD_JSON_BUILD_PAIR_STRING("uuid", uuid),
                              SD_JSON_BUILD_PAIR_BOOLEAN("active", active > 0),
                              SD_JSON_BUILD_PAIR_CONDITION(active > 0, "pid",
                                                           SD_JSON_BUILD_UNSIGNED(pid_of(m->domain))),
                              SD_JSON_BUILD_PAIR_CONDITION(xml != NULL, "xml", SD_JSON_BUILD_STRING(xml)));
        free(xml);
        answer(m, id, v);
}

static void do_and_answer(Monitor *m, sd_json_variant *id, int (*what)(virDomainPtr domain))
{
        sd_json_variant *v = NULL;

        if (what(m->domain) < 0) {
                refuse(m, id, last_error());
                return;
        }
        (void) sd_json_variant_new_object(&v, NULL, 0);
        answer(m, id, v);
}

/* libvirt may have been about to start it by itself. */
static int start(virDomainPtr domain)
{
        return virDomainCreate(domain) < 0 && virDomainIsActive(domain) <= 0 ? -1 : 0;
}

/* What QEMU answers has an id of libvirt's. */
static void pass_on(Monitor *m, sd_json_variant *id, sd_json_variant *command)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *without = NULL;
        sd_json_variant *arguments = sd_json_variant_by_key(command, "arguments"), *reply = NULL;
        _cleanup_free_ char *text = NULL;
        char *result = NULL;
        int r;

        r = sd_json_buildo(&without,
                           SD_JSON_BUILD_PAIR_VARIANT("execute", sd_json_variant_by_key(command, "execute")),
                           SD_JSON_BUILD_PAIR_CONDITION(arguments != NULL, "arguments",
                                                        SD_JSON_BUILD_VARIANT(arguments)));
        if (r >= 0)
                r = sd_json_variant_format(without, 0, &text);
        if (r < 0) {
                refuse(m, id, strerror(-r));
                return;
        }
        if (virDomainQemuMonitorCommand(m->domain, text, &result, 0) < 0) {
                refuse(m, id, last_error());
                return;
        }
        r = sd_json_parse(result, 0, &reply, NULL, NULL);
        free(result);
        if (r >= 0 && id)
                r = sd_json_variant_set_field(&reply, "id", id);
        if (r < 0) {
                sd_json_variant_unref(reply);
                refuse(m, id, "what QEMU says makes no sense");
                return;
        }
        say(m, reply);
}

static void take_line(Monitor *m, const char *line)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *command = NULL;
        sd_json_variant *execute, *id;
        const char *name;

        if (sd_json_parse(line, 0, &command, NULL, NULL) < 0 || !sd_json_variant_is_object(command)) {
                refuse(m, NULL, "no JSON");
                return;
        }
        execute = sd_json_variant_by_key(command, "execute");
        id = sd_json_variant_by_key(command, "id");
        name = execute && sd_json_variant_is_string(execute) ? sd_json_variant_string(execute) : "";
        if (streq(name, "qmp_capabilities")) {
                sd_json_variant *v = NULL;

                (void) sd_json_variant_new_object(&v, NULL, 0);
                answer(m, id, v);
        } else if (streq(name, LIBVIRT_COMMAND_DOMAIN))
                tell_domain(m, id);
        else if (streq(name, LIBVIRT_COMMAND_START))
                do_and_answer(m, id, start);
        else if (streq(name, LIBVIRT_COMMAND_DESTROY))
                do_and_answer(m, id, virDomainDestroy);
        else
                pass_on(m, id, command);
}

static gboolean on_input(gint fd, GIOCondition condition, gpointer userdata)
{
        Monitor *m = userdata;
        char buffer[65536], *end;
        ssize_t n;

        n = recv(fd, buffer, sizeof(buffer), MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return G_SOURCE_CONTINUE;
        if (n <= 0 || m->input->len + (size_t) n > LINE_MAX_SIZE) {
                quit(m, n == 0 ? EXIT_SUCCESS : EXIT_FAILURE);
                return G_SOURCE_REMOVE;
        }
        g_string_append_len(m->input, buffer, n);
        while ((end = strchr(m->input->str, '\n'))) {
                *end = 0;
                take_line(m, m->input->str);
                g_string_erase(m->input, 0, end - m->input->str + 1);
        }
        return G_SOURCE_CONTINUE;
}

static void on_event(virConnectPtr connection, virDomainPtr domain, const char *event, long long seconds,
                     unsigned int micros, const char *details, void *userdata)
{
        sd_json_variant *data = NULL, *v = NULL;
        Monitor *m = userdata;

        if (details && sd_json_parse(details, 0, &data, NULL, NULL) < 0)
                data = NULL;
        (void) sd_json_buildo(&v, SD_JSON_BUILD_PAIR_STRING("event", event),
                              SD_JSON_BUILD_PAIR_CONDITION(data != NULL, "data",
                                                           SD_JSON_BUILD_VARIANT(data)));
        sd_json_variant_unref(data);
        say(m, v);
}

static void on_close(virConnectPtr connection, int reason, void *userdata)
{
        quit(userdata, EXIT_FAILURE);
}

/* A domain that is not active has no QEMU that would say. */
static void greet(Monitor *m)
{
        unsigned long version = 0;
        sd_json_variant *v = NULL;

        (void) virConnectGetVersion(m->connection, &version);
        (void) sd_json_buildo(
                        &v,
                        SD_JSON_BUILD_PAIR(
                                        "QMP",
                                        SD_JSON_BUILD_OBJECT(SD_JSON_BUILD_PAIR(
                                                        "version",
                                                        SD_JSON_BUILD_OBJECT(SD_JSON_BUILD_PAIR(
                                                                        "qemu",
                                                                        SD_JSON_BUILD_OBJECT(
                                                                                        SD_JSON_BUILD_PAIR_UNSIGNED(
                                                                                                        "maj"
                                                                                                        "or",
                                                                                                        version / 1000000),
                                                                                        SD_JSON_BUILD_PAIR_UNSIGNED(
                                                                                                        "min"
                                                                                                        "or",
                                                                                                        version / 1000 %
                                                                                                                        1000),
                                                                                        SD_JSON_BUILD_PAIR_UNSIGNED(
                                                                                                        "mic"
                                                                                                        "ro",
                                                                                                        version % 1000))))))));
        say(m, v);
}

static int open_domain(Monitor *m, const char *name)
{
        m->connection = virConnectOpen(LIBVIRT_URI);
        if (!m->connection)
                return luv_log_error(-ENOTCONN, "libvirt cannot be reached: %s", last_error());
        m->domain = virDomainLookupByName(m->connection, name);
        if (!m->domain)
                m->domain = virDomainLookupByUUIDString(m->connection, name);
        if (!m->domain)
                return luv_log_error(-ENOENT, "No domain %s: %s", name, last_error());
        if (virConnectRegisterCloseCallback(m->connection, on_close, m, NULL) < 0 ||
            virConnectDomainQemuMonitorEventRegister(m->connection, m->domain, NULL, on_event, m, NULL, 0) <
                            0)
                return luv_log_error(-EIO, "Events of domain %s: %s", name, last_error());
        return 0;
}

static void drop_error(void *userdata, virErrorPtr error)
{
}

int luv_libvirt_monitor_run(const char *domain, int fd)
{
        Monitor m = { .fd = fd, .status = EXIT_SUCCESS };

        virSetErrorFunc(NULL, drop_error);
        gvir_event_register();
        m.loop = g_main_loop_new(NULL, FALSE);
        m.input = g_string_new(NULL);
        if (open_domain(&m, domain) < 0)
                m.status = EXIT_FAILURE;
        else {
                greet(&m);
                (void) g_unix_fd_add(fd, G_IO_IN | G_IO_HUP, on_input, &m);
                g_main_loop_run(m.loop);
        }
        if (m.domain)
                virDomainFree(m.domain);
        if (m.connection)
                (void) virConnectClose(m.connection);
        g_string_free(m.input, TRUE);
        g_main_loop_unref(m.loop);
        return m.status;
}
