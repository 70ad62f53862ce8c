/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "util/log.h"
#include "varlink/server-private.h"

/* The interface that systemd's services have beside their own. */

/* clang-format off */

static SD_VARLINK_DEFINE_METHOD(Ping);

static SD_VARLINK_DEFINE_METHOD(
        SetLogLevel,
        SD_VARLINK_FIELD_COMMENT("Messages above this priority are dropped: 0 (emergency) to 7 (debug)."),
        SD_VARLINK_DEFINE_INPUT(level, SD_VARLINK_INT, 0));

static SD_VARLINK_DEFINE_METHOD(
        GetEnvironment,
        SD_VARLINK_FIELD_COMMENT("The daemon's environment, VARIABLE=VALUE each."),
        SD_VARLINK_DEFINE_OUTPUT(environment, SD_VARLINK_STRING, SD_VARLINK_NULLABLE | SD_VARLINK_ARRAY));

static SD_VARLINK_DEFINE_ERROR(InconsistentEnvironment);

static SD_VARLINK_DEFINE_INTERFACE(
        io_systemd_service,
        "io.systemd.service",
        SD_VARLINK_INTERFACE_COMMENT("An interface for controlling basic properties of a service."),
        SD_VARLINK_SYMBOL_COMMENT("Answers, if the service is well"),
        &vl_method_Ping,
        SD_VARLINK_SYMBOL_COMMENT("Sets how much is logged; for root"),
        &vl_method_SetLogLevel,
        SD_VARLINK_SYMBOL_COMMENT("Shows the environment; for root"),
        &vl_method_GetEnvironment,
        SD_VARLINK_SYMBOL_COMMENT("The environment is not valid UTF-8"),
        &vl_error_InconsistentEnvironment);

/* clang-format on */

static int method_ping(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                       void *userdata)
{
        int r;

        r = luv_dispatch(userdata, parameters, flags, luv_no_parameters, NULL);
        if (r <= 0)
                return r;
        return sd_varlink_reply(link, NULL);
}

static bool is_root(Connection *c)
{
        return c->peer.uid == 0 || (c->server->config.simulated && c->peer.uid == getuid());
}

static int method_set_log_level(sd_varlink *link, sd_json_variant *parameters,
                                sd_varlink_method_flags_t flags, void *userdata)
{
        static const sd_json_dispatch_field table[] = {
                { "level", _SD_JSON_VARIANT_TYPE_INVALID, sd_json_dispatch_int64, 0, SD_JSON_MANDATORY },
                {},
        };
        Connection *c = userdata;
        int64_t level;
        int r;

        r = luv_dispatch(c, parameters, flags, table, &level);
        if (r <= 0)
                return r;
        if (level < LOG_EMERG || level > LOG_DEBUG)
                return sd_varlink_error_invalid_parameter_name(link, "level");
        if (!is_root(c))
                return sd_varlink_error(link, SD_VARLINK_ERROR_PERMISSION_DENIED, NULL);
        luv_log_set_max_level((int) level);
        return sd_varlink_reply(link, NULL);
}

static int method_get_environment(sd_varlink *link, sd_json_variant *parameters,
                                  sd_varlink_method_flags_t flags, void *userdata)
{
        Connection *c = userdata;
        int r;

        r = luv_dispatch(c, parameters, flags, luv_no_parameters, NULL);
        if (r <= 0)
                return r;
        if (!is_root(c))
                return sd_varlink_error(link, SD_VARLINK_ERROR_PERMISSION_DENIED, NULL);
        r = sd_varlink_replybo(link, SD_JSON_BUILD_PAIR_STRV("environment", environ));
        if (r == -EUCLEAN)
                return sd_varlink_error(link, "io.systemd.service.InconsistentEnvironment", NULL);
        return r;
}

int luv_server_bind_service(sd_varlink_server *v)
{
        int r;

        r = sd_varlink_server_add_interface(v, &vl_interface_io_systemd_service);
        if (r < 0)
                return r;
        return sd_varlink_server_bind_method_many(v, "io.systemd.service.Ping", method_ping,
                                                  "io.systemd.service.SetLogLevel", method_set_log_level,
                                                  "io.systemd.service.GetEnvironment",
                                                  method_get_environment);
}
