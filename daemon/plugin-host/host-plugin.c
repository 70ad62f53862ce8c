/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <dlfcn.h>
#include <systemd/sd-json.h>

#include "plugin-host/host-plugin.h"
#include "util/string-util.h"

#define SCORE_MAX 1000
#define KNOWN_CAPABILITIES LUVFIO_CAPABILITY_NO_DEVICE

static const char *const luv_host_op_table[_HOST_OP_MAX] = {
        [HOST_OP_MATCH] = "match",     [HOST_OP_PREFLIGHT] = "preflight", [HOST_OP_QUIESCED] = "quiesced",
        [HOST_OP_PLAN] = "plan",       [HOST_OP_REBIND] = "rebind",       [HOST_OP_VERIFY] = "verify",
        [HOST_OP_RECOVER] = "recover",
};
DEFINE_STRING_TABLE(luv_host_op, HostOp);

static const char *const promise_table[] = {
        [LUVFIO_PROMISE_RESET] = "reset",
        [LUVFIO_PROMISE_RUNNING] = "running",
        [LUVFIO_PROMISE_LATCHED] = "latched",
};

static const char *const severity_table[] = {
        [LUVFIO_NOTE] = "note",
        [LUVFIO_WARNING] = "warning",
        [LUVFIO_BLOCKER] = "blocker",
};

bool luv_plugin_name_valid(const char *s)
{
        size_t n;

        if (!s || *s < 'a' || *s > 'z')
                return false;
        n = strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789-");
        return s[n] == 0 && n <= LUVFIO_PLUGIN_NAME_MAX;
}

int luv_host_plugin_check(const struct luvfio_plugin *p, const char *name, char **ret_reason)
{
        const struct luvfio_plugin_ops *o;

        /* A later version of the structures is longer, never shorter; what is more, we do not look at. */
        if (p->size < sizeof(struct luvfio_plugin))
                return luv_reason(ret_reason, -ELIBBAD, "its description has %zu bytes, %zu are needed",
                                  p->size, sizeof(struct luvfio_plugin));
        if (p->abi != LUVFIO_PLUGIN_ABI)
                return luv_reason(ret_reason, -ELIBBAD, "it was built for plugin ABI %u, this host has %u",
                                  p->abi, LUVFIO_PLUGIN_ABI);
        if (!p->name || !streq(p->name, name))
                return luv_reason(ret_reason, -ELIBBAD, "it calls itself %s, not %s",
                                  luv_plugin_name_valid(p->name) ? p->name : "something that is no name",
                                  name);
        if (p->capabilities & ~KNOWN_CAPABILITIES)
                return luv_reason(ret_reason, -ELIBBAD, "it needs capabilities 0x%llx that this host lacks",
                                  (unsigned long long) (p->capabilities & ~KNOWN_CAPABILITIES));
        o = p->ops;
        if (!o || o->size < sizeof(struct luvfio_plugin_ops))
                return luv_reason(ret_reason, -ELIBBAD, "its table of operations is too short or missing");
        if (!o->match || !o->preflight || !o->quiesced || !o->plan || !o->rebind || !o->verify ||
            !o->recover)
                return luv_reason(ret_reason, -ELIBBAD, "an operation is missing");
        return 0;
}

int luv_host_plugin_load(const char *dir, const char *name, const struct luvfio_plugin **ret,
                         char **ret_reason)
{
        _cleanup_free_ char *path = NULL, *why = NULL;
        const struct luvfio_plugin *p;
        void *library;

        if (!luv_plugin_name_valid(name))
                return luv_reason(ret_reason, -ELIBBAD, "\"%s\" is no plugin name", name);
        path = luv_strf("%s/%s.so", dir, name);
        if (!path)
                return luv_reason(ret_reason, -ENOMEM, "out of memory");

        library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!library)
                return luv_reason(ret_reason, -ELIBBAD, "plugin %s cannot be loaded: %s", name, dlerror());
        p = dlsym(library, "luvfio_plugin_v1");
        if (!p)
                return luv_reason(ret_reason, -ELIBBAD, "%s is no plugin: it has no symbol luvfio_plugin_v1",
                                  path);
        if (luv_host_plugin_check(p, name, &why) < 0)
                return luv_reason(ret_reason, -ELIBBAD, "plugin %s cannot be used: %s", path, strempty(why));

        *ret = p;
        return 0;
}

static int append_findings(const struct luvfio_device *d, sd_json_variant **findings)
{
        int r;

        for (size_t i = 0; i < d->n_findings; i++) {
                const HostFinding *f = &d->findings[i];

                r = sd_json_variant_append_arraybo(
                                findings, SD_JSON_BUILD_PAIR_STRING("id", f->id),
                                SD_JSON_BUILD_PAIR_STRING("severity", severity_table[f->severity]),
                                SD_JSON_BUILD_PAIR_STRING("message", f->message),
                                SD_JSON_BUILD_PAIR_CONDITION(!!f->remedy, "remedy",
                                                             SD_JSON_BUILD_STRING(f->remedy)));
                if (r < 0)
                        return r;
        }
        return 0;
}

/* What the operation gave, or its failure, which may be that it broke the contract. */
static int build_ok(HostOp op, struct luvfio_device *d, int result, enum luvfio_promise promise,
                    const char *plan, sd_json_variant **ret)
{
        sd_json_variant *findings = NULL;
        int r;

        switch (op) {
        case HOST_OP_MATCH:
                if (result == 0)
                        return sd_json_buildo(ret, SD_JSON_BUILD_PAIR_INTEGER("score", 0));
                if (result > SCORE_MAX)
                        return luv_host_callbacks.set_reason(d, -EBADE, "its score %i is above %i", result,
                                                             SCORE_MAX);
                if (promise < LUVFIO_PROMISE_RESET || promise > LUVFIO_PROMISE_LATCHED)
                        return luv_host_callbacks.set_reason(d, -EBADE, "it promises %i, which is nothing",
                                                             (int) promise);
                return sd_json_buildo(ret, SD_JSON_BUILD_PAIR_INTEGER("score", result),
                                      SD_JSON_BUILD_PAIR_STRING("promise", promise_table[promise]));

        case HOST_OP_PREFLIGHT:
                r = append_findings(d, &findings);
                if (r >= 0 && findings)
                        r = sd_json_buildo(ret, SD_JSON_BUILD_PAIR_VARIANT("findings", findings));
                else if (r >= 0)
                        r = sd_json_buildo(ret, SD_JSON_BUILD_PAIR_EMPTY_ARRAY("findings"));
                sd_json_variant_unref(findings);
                return r;

        case HOST_OP_PLAN:
                if (!memchr(plan, 0, LUVFIO_PLAN_SIZE))
                        return luv_host_callbacks.set_reason(d, -EBADE, "its plan has no end");
                if (!luv_utf8_valid(plan, strlen(plan)))
                        return luv_host_callbacks.set_reason(d, -EBADE, "its plan is not text");
                return sd_json_buildo(ret, SD_JSON_BUILD_PAIR_STRING("plan", plan));

        default:
                return sd_json_build(ret, SD_JSON_BUILD_EMPTY_OBJECT);
        }
}

int luv_host_plugin_run(const struct luvfio_plugin *p, HostOp op, struct luvfio_device *device,
                        const char *plan, char **ret_answer)
{
        const struct luvfio_host *host = &luv_host_callbacks;
        enum luvfio_promise promise = 0;
        _cleanup_free_ char *own_plan = NULL;
        sd_json_variant *output = NULL, *answer = NULL;
        int r;

        /* One more than the plugin may use, so that a plan without an end is seen and has one. */
        own_plan = calloc(1, LUVFIO_PLAN_SIZE + 1);
        if (!own_plan)
                return -ENOMEM;

        switch (op) {
        case HOST_OP_MATCH:
                r = p->ops->match(host, device, &promise);
                break;
        case HOST_OP_PREFLIGHT:
                r = p->ops->preflight(host, device);
                break;
        case HOST_OP_QUIESCED:
                r = p->ops->quiesced(host, device);
                break;
        case HOST_OP_PLAN:
                r = p->ops->plan(host, device, own_plan, LUVFIO_PLAN_SIZE);
                break;
        case HOST_OP_REBIND:
                r = p->ops->rebind(host, device, plan);
                break;
        case HOST_OP_VERIFY:
                r = p->ops->verify(host, device, plan);
                break;
        case HOST_OP_RECOVER:
                r = p->ops->recover(host, device, plan);
                break;
        default:
                return -EINVAL;
        }

        if (r > 0 && op != HOST_OP_MATCH)
                r = host->set_reason(device, -EBADE, "it returned %i, which means nothing", r);
        if (r >= 0)
                r = build_ok(op, device, r, promise, own_plan, &output);
        if (r >= 0)
                r = sd_json_buildo(&answer, SD_JSON_BUILD_PAIR_VARIANT("ok", output));
        else
                r = sd_json_buildo(&answer,
                                   SD_JSON_BUILD_PAIR_STRING("failed", device->reason ? device->reason
                                                                                      : strerror(-r)));
        if (r >= 0)
                r = sd_json_variant_format(answer, 0, ret_answer);
        sd_json_variant_unref(answer);
        sd_json_variant_unref(output);
        return MIN(r, 0);
}
