/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "plan.h"

#include <errno.h>
#include <json-c/json.h>
#include <string.h>

/* A reader understands every plan whose minReader is not above this. */
#define PLAN_VERSION 1
#define PLAN_MIN_READER 1
#define PLAN_DEPTH_MAX 8

static const char *const promise_names[] = {
        [LUVFIO_PROMISE_RESET] = "reset",
        [LUVFIO_PROMISE_RUNNING] = "running",
        [LUVFIO_PROMISE_LATCHED] = "latched",
};

static int add(struct json_object *o, const char *key, struct json_object *value)
{
        if (!value)
                return -ENOMEM;
        if (json_object_object_add(o, key, value) < 0) {
                json_object_put(value);
                return -ENOMEM;
        }
        return 0;
}

static int add_number(struct json_object *o, const char *key, uint64_t v)
{
        return add(o, key, json_object_new_uint64(v));
}

static int build_identity(const struct identity *i, struct json_object *o)
{
        if (add_number(o, "vendor", i->vendor) < 0 || add_number(o, "device", i->device) < 0 ||
            add_number(o, "subsystemVendor", i->subsystem_vendor) < 0 ||
            add_number(o, "subsystemDevice", i->subsystem_device) < 0 ||
            add_number(o, "class", i->class_code) < 0 || add_number(o, "revision", i->revision) < 0 ||
            add_number(o, "serial", i->serial) < 0)
                return -ENOMEM;
        return 0;
}

static int build_bars(const struct bar bars[PCI_BARS], struct json_object *array)
{
        for (unsigned i = 0; i < PCI_BARS; i++) {
                struct json_object *o;

                if (bars[i].size == 0)
                        continue;
                o = json_object_new_object();
                if (!o || json_object_array_add(array, o) < 0) {
                        json_object_put(o);
                        return -ENOMEM;
                }
                if (add_number(o, "index", i) < 0 || add_number(o, "address", bars[i].address) < 0 ||
                    add_number(o, "size", bars[i].size) < 0 || add_number(o, "flags", bars[i].flags) < 0)
                        return -ENOMEM;
        }
        return 0;
}

static int build(const struct plan *plan, struct json_object *root)
{
        struct json_object *identity = json_object_new_object(), *bars = json_object_new_array();

        /* What add() is given, it owns, so that all goes with the root. */
        if (add(root, "identity", identity) < 0) {
                json_object_put(bars);
                return -ENOMEM;
        }
        if (add(root, "bars", bars) < 0 || build_identity(&plan->identity, identity) < 0 ||
            build_bars(plan->bars, bars) < 0 || add_number(root, "version", PLAN_VERSION) < 0 ||
            add_number(root, "minReader", PLAN_MIN_READER) < 0 ||
            add_number(root, "command", plan->command) < 0 ||
            add(root, "driver", json_object_new_string(plan->driver)) < 0 ||
            add(root, "handler", json_object_new_string(plan->handler)) < 0 ||
            add(root, "promise", json_object_new_string(promise_names[plan->promise])) < 0)
                return -ENOMEM;
        return 0;
}

int plan_format(const struct luvfio_host *host, struct luvfio_device *device, const struct plan *plan,
                char *text, size_t size)
{
        struct json_object *root = json_object_new_object();
        const char *s = NULL;
        int r = -ENOMEM;

        if (root && build(plan, root) >= 0)
                s = json_object_to_json_string_ext(root, JSON_C_TO_STRING_PLAIN);
        if (s) {
                r = strlen(s) < size ? 0 : -EFBIG;
                if (r >= 0)
                        memcpy(text, s, strlen(s) + 1);
        }
        json_object_put(root);
        if (r < 0)
                return host->set_reason(device, r, "its plan cannot be written: %s", strerror(-r));
        return 0;
}

/* The member KEY of type TYPE; NULL if it is not there or is another. */
static struct json_object *get(struct json_object *o, const char *key, enum json_type type)
{
        struct json_object *v = NULL;

        if (!json_object_is_type(o, json_type_object) || !json_object_object_get_ex(o, key, &v) ||
            !json_object_is_type(v, type))
                return NULL;
        return v;
}

static int get_number(struct json_object *o, const char *key, uint64_t max, uint64_t *ret)
{
        struct json_object *v = get(o, key, json_type_int);

        if (!v || json_object_get_int64(v) < 0 || json_object_get_uint64(v) > max)
                return -EBADMSG;
        *ret = json_object_get_uint64(v);
        return 0;
}

static int get_number32(struct json_object *o, const char *key, uint32_t *ret)
{
        uint64_t v;
        int r;

        r = get_number(o, key, UINT32_MAX, &v);
        if (r >= 0)
                *ret = (uint32_t) v;
        return r;
}

static int get_text(struct json_object *o, const char *key, char *ret, size_t size)
{
        struct json_object *v = get(o, key, json_type_string);

        if (!v || (size_t) json_object_get_string_len(v) >= size ||
            strlen(json_object_get_string(v)) != (size_t) json_object_get_string_len(v))
                return -EBADMSG;
        memcpy(ret, json_object_get_string(v), strlen(json_object_get_string(v)) + 1);
        return 0;
}

static int parse_identity(struct json_object *o, struct identity *ret)
{
        if (get_number32(o, "vendor", &ret->vendor) < 0 || get_number32(o, "device", &ret->device) < 0 ||
            get_number32(o, "subsystemVendor", &ret->subsystem_vendor) < 0 ||
            get_number32(o, "subsystemDevice", &ret->subsystem_device) < 0 ||
            get_number32(o, "class", &ret->class_code) < 0 ||
            get_number32(o, "revision", &ret->revision) < 0)
                return -EBADMSG;
        return get_number(o, "serial", UINT64_MAX, &ret->serial);
}

static int parse_bars(struct json_object *array, struct bar ret[PCI_BARS])
{
        for (size_t i = 0; i < json_object_array_length(array); i++) {
                struct json_object *o = json_object_array_get_idx(array, i);
                uint64_t index;

                if (get_number(o, "index", PCI_BARS - 1, &index) < 0 || ret[index].size != 0 ||
                    get_number(o, "address", UINT64_MAX, &ret[index].address) < 0 ||
                    get_number(o, "size", UINT64_MAX, &ret[index].size) < 0 ||
                    get_number(o, "flags", UINT64_MAX, &ret[index].flags) < 0 || ret[index].size == 0)
                        return -EBADMSG;
        }
        return 0;
}

static int parse(struct json_object *root, struct plan *ret)
{
        struct json_object *bars = get(root, "bars", json_type_array);
        char promise[16];
        uint64_t command;

        if (!bars || get_text(root, "promise", promise, sizeof(promise)) < 0 ||
            get_text(root, "driver", ret->driver, sizeof(ret->driver)) < 0 ||
            get_text(root, "handler", ret->handler, sizeof(ret->handler)) < 0 ||
            get_number(root, "command", UINT16_MAX, &command) < 0 ||
            parse_identity(get(root, "identity", json_type_object), &ret->identity) < 0 ||
            parse_bars(bars, ret->bars) < 0)
                return -EBADMSG;
        ret->command = (uint16_t) command;
        for (int i = LUVFIO_PROMISE_RESET; i <= LUVFIO_PROMISE_LATCHED; i++)
                if (strcmp(promise, promise_names[i]) == 0)
                        ret->promise = (enum luvfio_promise) i;
        return ret->promise == 0 ? -EBADMSG : 0;
}

int plan_parse(const struct luvfio_host *host, struct luvfio_device *device, const char *text,
               struct plan *ret)
{
        struct json_tokener *t = json_tokener_new_ex(PLAN_DEPTH_MAX);
        struct json_object *root = NULL;
        struct plan plan = { 0 };
        uint64_t min_reader;
        int r = -EBADMSG;

        if (t) {
                json_tokener_set_flags(t, JSON_TOKENER_STRICT);
                root = json_tokener_parse_ex(t, text, (int) strlen(text) + 1);
                json_tokener_free(t);
        }
        if (get_number(root, "minReader", UINT32_MAX, &min_reader) >= 0) {
                if (min_reader > PLAN_VERSION)
                        r = host->set_reason(
                                        device, -EPROTONOSUPPORT,
                                        "its plan is for version %llu of the plugin and above, this is %d",
                                        (unsigned long long) min_reader, PLAN_VERSION);
                else
                        r = parse(root, &plan);
        }
        json_object_put(root);
        if (r == -EBADMSG)
                return host->set_reason(device, r, "its plan is damaged");
        if (r < 0)
                return r;
        *ret = plan;
        return 0;
}
