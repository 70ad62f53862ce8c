/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <inttypes.h>
#include <stdarg.h>

#include "ctl/ctl-client.h"
#include "ctl/ctl-show.h"
#include "util/string-util.h"
#include "varlink/idl.h"

void ctl_done(Ctl *c)
{
        ctl_agent_stop(&c->agent);
        ctl_disconnect(c);
        ctl_options_done(&c->options);
}

ExitCode ctl_fail(Ctl *c, ExitCode code, const char *format, ...)
{
        _cleanup_free_ char *text = NULL, *clean = NULL;
        va_list ap;

        va_start(ap, format);
        text = luv_strfv(format, ap);
        va_end(ap);
        clean = text ? ctl_clean(text) : NULL;
        fflush(c->out.f);
        fprintf(c->err.f, "%sluvfioctl:%s %s\n", ctl_style(&c->err, STYLE_BAD),
                ctl_style_off(&c->err, STYLE_BAD), clean ? clean : "Out of memory.");
        return code;
}

ExitCode ctl_fail_oom(Ctl *c)
{
        return ctl_fail(c, CTL_FAILED, "Out of memory.");
}

ExitCode ctl_fail_reply(Ctl *c, const char *bad_field)
{
        return ctl_fail(c, CTL_FAILED,
                        "What answers at %s does not speak as luvfiod does: '%s' is missing or of another "
                        "type.",
                        c->options.socket, bad_field);
}

ExitCode ctl_print_json(Ctl *c, sd_json_variant *v)
{
        static const sd_json_format_flags_t flags[_JSON_MODE_MAX] = {
                [JSON_MODE_SHORT] = SD_JSON_FORMAT_NEWLINE,
                [JSON_MODE_PRETTY] = SD_JSON_FORMAT_PRETTY,
                [JSON_MODE_SEQ] = SD_JSON_FORMAT_SEQ | SD_JSON_FORMAT_NEWLINE,
        };
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *empty = NULL;
        sd_json_format_flags_t f = flags[c->options.json] | SD_JSON_FORMAT_FLUSH;
        int r;

        if (c->options.json == JSON_MODE_PRETTY && c->out.colour)
                f |= SD_JSON_FORMAT_COLOR;
        /* Later versions of sd-varlink have no object for a reply without content. */
        r = v ? 0 : sd_json_variant_new_object(&empty, NULL, 0);
        if (r >= 0)
                r = sd_json_variant_dump(v ? v : empty, f, c->out.f, NULL);
        return r < 0 ? ctl_fail(c, CTL_FAILED, "Cannot print JSON: %s.", strerror(-r)) : CTL_DONE;
}

static ExitCode fail_blocked(Ctl *c, sd_json_variant *parameters)
{
        _cleanup_free_ Finding *findings = NULL;
        const char *bad;
        size_t n = 0;

        if (c->options.json != JSON_MODE_OFF)
                return ctl_fail(c, CTL_BLOCKED, "Refused: there are blockers.");
        if (ctl_parse_findings(parameters, &findings, &n, &bad) < 0)
                return ctl_fail_reply(c, bad);
        if (ctl_show_findings(&c->out, findings, n) < 0)
                return ctl_fail_oom(c);
        fflush(c->out.f);
        return CTL_BLOCKED;
}

static ExitCode fail_update(Ctl *c, sd_json_variant *parameters)
{
        const char *machine = ctl_get_string(parameters, "machine");

        return ctl_fail(c, CTL_ABORTED, "Given up while %s%s%s: %s; all machines run on.",
                        strempty(ctl_get_string(parameters, "state")), machine ? ", at machine " : "",
                        strempty(machine), strempty(ctl_get_string(parameters, "reason")));
}

static ExitCode fail_system(Ctl *c, sd_json_variant *parameters)
{
        sd_json_variant *v = sd_json_variant_by_key(parameters, "errno");

        if (v && sd_json_variant_is_unsigned(v) && sd_json_variant_unsigned(v) < 4096)
                return ctl_fail(c, CTL_FAILED, "luvfiod failed: %s.",
                                strerror((int) sd_json_variant_unsigned(v)));
        return ctl_fail(c, CTL_FAILED, "luvfiod failed.");
}

ExitCode ctl_fail_error(Ctl *c, const char *error_id, sd_json_variant *parameters)
{
        static const struct {
                const char *id;
                ExitCode code;
                const char *format, *parameter;
        } errors[] = {
                { VL_ERROR_HOST("UpdateInProgress"), CTL_FAILED, "Another update is under way (state %s).",
                  "state" },
                { VL_ERROR_HOST("NotPossible"), CTL_FAILED, "This cannot be done in state %s.", "state" },
                { VL_ERROR_HOST("NoSuchUpdate"), CTL_FAILED, "There is no such update: '%s'.", "updateId" },
                { VL_ERROR_HOST("NoSuchMachine"), CTL_FAILED, "There is no machine '%s'.", "machine" },
                { VL_ERROR_HOST("NotStranded"), CTL_FAILED,
                  "Machine '%s' is not stranded; only stranded ones can be discarded.", "machine" },
                { VL_ERROR_HOST("BadKernel"), CTL_FAILED, "%s.", "reason" },
                { VL_ERROR_HOST("NoKernel"), CTL_FAILED,
                  "No kernel was given and none is staged: name one on the command line.", NULL },
                { SD_VARLINK_ERROR_PERMISSION_DENIED, CTL_FORBIDDEN,
                  "Not permitted: this needs root, or an authorisation by polkit.", NULL },
                { SD_VARLINK_ERROR_INTERACTIVE_AUTHENTICATION_REQUIRED, CTL_FORBIDDEN,
                  "Not permitted without authentication.", NULL },
                { SD_VARLINK_ERROR_INVALID_PARAMETER, CTL_FAILED, "luvfiod does not take this '%s'.",
                  "parameter" },
                { SD_VARLINK_ERROR_METHOD_NOT_FOUND, CTL_FAILED, "This luvfiod does not know '%s'.",
                  "method" },
                { SD_VARLINK_ERROR_METHOD_NOT_IMPLEMENTED, CTL_FAILED, "This luvfiod cannot do '%s'.",
                  "method" },
                { SD_VARLINK_ERROR_INTERFACE_NOT_FOUND, CTL_FAILED,
                  "What answers is not luvfiod: it has no '%s'.", "interface" },
                { SD_VARLINK_ERROR_DISCONNECTED, CTL_UNREACHABLE, "The connection to luvfiod is lost.",
                  NULL },
                { SD_VARLINK_ERROR_TIMEOUT, CTL_UNREACHABLE, "luvfiod does not answer.", NULL },
                { SD_VARLINK_ERROR_PROTOCOL, CTL_FAILED, "What answers does not speak varlink.", NULL },
        };

        /* The loss of luvfiod is no answer of its. */
        if (c->options.json != JSON_MODE_OFF && !streq(error_id, SD_VARLINK_ERROR_DISCONNECTED) &&
            !streq(error_id, SD_VARLINK_ERROR_TIMEOUT) && !streq(error_id, SD_VARLINK_ERROR_PROTOCOL)) {
                _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL;

                if (sd_json_buildo(&v, SD_JSON_BUILD_PAIR_STRING("error", error_id),
                                   SD_JSON_BUILD_PAIR_CONDITION(!!parameters, "parameters",
                                                                SD_JSON_BUILD_VARIANT(parameters))) < 0)
                        return ctl_fail_oom(c);
                (void) ctl_print_json(c, v);
        }

        if (streq(error_id, VL_ERROR_HOST("Blocked")))
                return fail_blocked(c, parameters);
        if (streq(error_id, VL_ERROR_HOST("UpdateFailed")))
                return fail_update(c, parameters);
        if (streq(error_id, SD_VARLINK_ERROR_SYSTEM))
                return fail_system(c, parameters);
        for (size_t i = 0; i < ELEMENTSOF(errors); i++)
                if (streq(errors[i].id, error_id))
                        return ctl_fail(c, errors[i].code, errors[i].format,
                                        errors[i].parameter ? strempty(ctl_get_string(parameters,
                                                                                      errors[i].parameter))
                                                            : "");
        return ctl_fail(c, CTL_FAILED, "luvfiod answered with the error %s.", error_id);
}

void ctl_disconnect(Ctl *c)
{
        c->link = sd_varlink_close_unref(c->link);
}

int ctl_connect_address(const char *address, sd_varlink **ret)
{
        _cleanup_free_ char *absolute = NULL;

        if (*address == '/' || *address == '@')
                return sd_varlink_connect_address(ret, address);
        if (strchr(address, ':'))
                return sd_varlink_connect_url(ret, address);
        absolute = realpath(address, NULL);
        if (!absolute)
                return negative_errno();
        return sd_varlink_connect_address(ret, absolute);
}

ExitCode ctl_connect(Ctl *c)
{
        int r;

        if (c->link)
                return CTL_DONE;
        r = ctl_connect_address(c->options.socket, &c->link);
        if (r == -EACCES || r == -EPERM)
                return ctl_fail(c, CTL_FORBIDDEN,
                                "Not permitted to talk to luvfiod at %s: this needs root or the group "
                                "luvfio.",
                                c->options.socket);
        if (r < 0)
                return ctl_fail(c, CTL_UNREACHABLE,
                                "Cannot reach luvfiod at %s: %s. Is luvfiod.service running?",
                                c->options.socket, strerror(-r));
        /* Methods take what time they need: an answer comes, or the connection ends. */
        r = sd_varlink_set_relative_timeout(c->link, UINT64_MAX);
        if (r >= 0)
                r = sd_varlink_set_allow_fd_passing_output(c->link, true);
        return r < 0 ? ctl_fail(c, CTL_FAILED, "Cannot set up the connection: %s.", strerror(-r)) : CTL_DONE;
}

static bool may_authenticate(Ctl *c, const char *error_id)
{
        return c->options.ask_password &&
               streq(error_id, SD_VARLINK_ERROR_INTERACTIVE_AUTHENTICATION_REQUIRED);
}

/* Replaces the reference in *PARAMETERS (NULL: none) by one to a copy which says so. */
static int allow_authentication(sd_json_variant **parameters)
{
        return sd_json_variant_set_field_boolean(parameters, "allowInteractiveAuthentication", true);
}

/* What goes before a method's call: its whole name, and the fds into the connection. */
static ExitCode prepare(Ctl *c, const Call *call, char **ret_name)
{
        _cleanup_free_ char *name = luv_strf("org.luvfio.Host.%s", call->method);
        int r = 0;

        if (!name)
                return ctl_fail_oom(c);
        for (size_t i = 0; r >= 0 && i < call->n_fds; i++)
                r = sd_varlink_push_dup_fd(c->link, call->fds[i]);
        if (r < 0)
                return ctl_fail(c, CTL_FAILED, "Cannot pass files to luvfiod: %s.", strerror(-r));
        *ret_name = TAKE_PTR(name);
        return CTL_DONE;
}

static ExitCode call_once(Ctl *c, const Call *call, sd_json_variant *parameters, sd_json_variant **ret,
                          const char **ret_error)
{
        _cleanup_free_ char *name = NULL;
        sd_json_variant *reply = NULL;
        ExitCode code;
        int r;

        code = ctl_connect(c);
        if (code == CTL_DONE)
                code = prepare(c, call, &name);
        if (code != CTL_DONE)
                return code;
        r = sd_varlink_call(c->link, name, parameters, &reply, ret_error);
        if (r == -ECONNRESET || r == -EPIPE || r == -ENOTCONN || r == -ESHUTDOWN) {
                *ret_error = SD_VARLINK_ERROR_DISCONNECTED;
                return CTL_DONE;
        }
        if (r < 0)
                return ctl_fail(c, CTL_FAILED, "Cannot call %s: %s.", name, strerror(-r));
        *ret = sd_json_variant_ref(reply);
        return CTL_DONE;
}

ExitCode ctl_call(Ctl *c, const Call *call, sd_json_variant **ret)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *reply = NULL, *parameters = NULL;
        const char *error = NULL;
        ExitCode code;

        parameters = sd_json_variant_ref(call->parameters);
        code = call_once(c, call, parameters, &reply, &error);
        if (code == CTL_DONE && error && may_authenticate(c, error)) {
                if (allow_authentication(&parameters) < 0)
                        return ctl_fail_oom(c);
                reply = sd_json_variant_unref(reply);
                error = NULL;
                ctl_agent_start(&c->agent);
                code = call_once(c, call, parameters, &reply, &error);
                ctl_agent_stop(&c->agent);
        }
        if (code != CTL_DONE)
                return code;
        if (error)
                return ctl_fail_error(c, error, reply);
        *ret = TAKE_PTR(reply);
        return CTL_DONE;
}

static ExitCode observe(Stream *s)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *parameters =
                        sd_json_variant_ref(s->call.parameters);
        _cleanup_free_ char *name = NULL;
        ExitCode code;
        int r;

        if (s->interactive && allow_authentication(&parameters) < 0)
                return ctl_fail_oom(s->c);
        code = prepare(s->c, &s->call, &name);
        if (code != CTL_DONE)
                return code;
        r = sd_varlink_observe(s->c->link, name, parameters);
        return r < 0 ? ctl_fail(s->c, CTL_FAILED, "Cannot call %s: %s.", name, strerror(-r)) : CTL_DONE;
}

static int on_again(sd_event_source *source, void *userdata)
{
        Stream *s = userdata;
        ExitCode code;

        ctl_agent_start(&s->c->agent);
        code = observe(s);
        return code == CTL_DONE ? 0 : sd_event_exit(s->event, code);
}

static int on_stream_reply(sd_varlink *link, sd_json_variant *parameters, const char *error_id,
                           sd_varlink_reply_flags_t flags, void *userdata)
{
        Stream *s = userdata;

        if (error_id && may_authenticate(s->c, error_id) && !s->interactive) {
                s->interactive = true;
                /* Not from here: the connection still has this reply in hand. */
                return sd_event_add_defer(s->event, NULL, on_again, s);
        }
        ctl_agent_stop(&s->c->agent);
        if (error_id)
                s->on_error(s, error_id, parameters);
        else
                s->on_reply(s, parameters, !(flags & SD_VARLINK_REPLY_CONTINUES));
        return 0;
}

ExitCode ctl_stream_start(Stream *s)
{
        ExitCode code;
        int r;

        code = ctl_connect(s->c);
        if (code != CTL_DONE)
                return code;
        sd_varlink_set_userdata(s->c->link, s);
        r = sd_varlink_bind_reply(s->c->link, on_stream_reply);
        if (r >= 0)
                r = sd_varlink_attach_event(s->c->link, s->event, SD_EVENT_PRIORITY_NORMAL);
        if (r < 0)
                return ctl_fail(s->c, CTL_FAILED, "Cannot set up the connection: %s.", strerror(-r));
        return observe(s);
}
