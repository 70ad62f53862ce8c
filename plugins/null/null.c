/* SPDX-License-Identifier: LGPL-2.1-or-later */

/*
 * The plugin that does nothing: the reference of the plugin ABI, what answers for the devices of a
 * simulation, and a source of faults for tests. See README.md for its configuration.
 */

#include <errno.h>
#include <json-c/json.h>
#include <luvfio/plugin.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define CONFIG_SIZE_MAX ((off_t) 1024 * 1024)
#define SCORE_DEFAULT 1000
#define SCORE_MAX 1000
#define PLAN_FORMAT "null 1 %s"

enum fault {
        FAULT_NONE,
        FAULT_REFUSE,
        FAULT_CRASH,
        FAULT_HANG,
        FAULT_LIE,
        FAULT_GARBLE,
};

static const char *const fault_names[] = {
        [FAULT_REFUSE] = "refuse", [FAULT_CRASH] = "crash",   [FAULT_HANG] = "hang",
        [FAULT_LIE] = "lie",       [FAULT_GARBLE] = "garble",
};

/* What the configuration says of one operation on one device. */
struct orders {
        int matched;
        int score;
        enum luvfio_promise promise;
        enum fault fault;
        char reason[256];
};

static const char *string_member(struct json_object *o, const char *key)
{
        struct json_object *v = NULL;

        if (!json_object_object_get_ex(o, key, &v) || !json_object_is_type(v, json_type_string))
                return NULL;
        return json_object_get_string(v);
}

static int promise_from_string(const char *s, enum luvfio_promise *ret)
{
        if (strcmp(s, "reset") == 0)
                *ret = LUVFIO_PROMISE_RESET;
        else if (strcmp(s, "running") == 0)
                *ret = LUVFIO_PROMISE_RUNNING;
        else if (strcmp(s, "latched") == 0)
                *ret = LUVFIO_PROMISE_LATCHED;
        else
                return -EINVAL;
        return 0;
}

static int invalid(const struct luvfio_host *host, struct luvfio_device *device, const char *what)
{
        return host->set_reason(device, -EINVAL, "%s: %s", host->config_file(device), what);
}

/* "devices": an array of addresses; without it, all in a simulation and none on a real host. */
static int parse_devices(const struct luvfio_host *host, struct luvfio_device *device,
                         struct json_object *root, struct orders *orders)
{
        const char *address = host->address(device);
        struct json_object *devices = NULL;

        if (!json_object_object_get_ex(root, "devices", &devices))
                return 0;
        if (!json_object_is_type(devices, json_type_array))
                return invalid(host, device, "\"devices\" is no array");
        orders->matched = 0;
        for (size_t i = 0; i < json_object_array_length(devices); i++) {
                struct json_object *e = json_object_array_get_idx(devices, i);

                if (json_object_is_type(e, json_type_string) &&
                    strcasecmp(json_object_get_string(e), address) == 0)
                        orders->matched = 1;
        }
        return 0;
}

/* "score": as luvfiod takes it, 1 to 1000. */
static int parse_score(const struct luvfio_host *host, struct luvfio_device *device,
                       struct json_object *root, struct orders *orders)
{
        struct json_object *score = NULL;

        if (!json_object_object_get_ex(root, "score", &score))
                return 0;
        orders->score = json_object_is_type(score, json_type_int) ? json_object_get_int(score) : 0;
        if (orders->score < 1 || orders->score > SCORE_MAX)
                return invalid(host, device, "\"score\" is no number from 1 to 1000");
        return 0;
}

static int is_operation(const char *op)
{
        static const char *const names[] = {
                "match", "preflight", "quiesced", "plan", "rebind", "verify", "recover",
        };

        for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
                if (strcmp(op, names[i]) == 0)
                        return 1;
        return 0;
}

/* "faults": the first that fits operation and device counts. */
static int parse_faults(const struct luvfio_host *host, struct luvfio_device *device,
                        struct json_object *root, const char *op, struct orders *orders)
{
        struct json_object *faults = NULL;

        if (!json_object_object_get_ex(root, "faults", &faults))
                return 0;
        if (!json_object_is_type(faults, json_type_array))
                return invalid(host, device, "\"faults\" is no array");

        for (size_t i = 0; i < json_object_array_length(faults); i++) {
                struct json_object *f = json_object_array_get_idx(faults, i);
                const char *f_op = string_member(f, "op"), *f_device = string_member(f, "device");
                const char *f_fault = string_member(f, "fault"), *f_reason = string_member(f, "reason");

                /* A fault that never comes would pass for one that was survived. */
                if (f_op && !is_operation(f_op))
                        return host->set_reason(device, -EINVAL, "%s: fault %zu has no known \"op\"",
                                                host->config_file(device), i);
                if ((f_op && strcmp(f_op, op) != 0) ||
                    (f_device && strcasecmp(f_device, host->address(device)) != 0))
                        continue;
                for (size_t k = FAULT_NONE + 1; f_fault && k < sizeof(fault_names) / sizeof(*fault_names);
                     k++)
                        if (strcmp(f_fault, fault_names[k]) == 0)
                                orders->fault = (enum fault) k;
                if (orders->fault == FAULT_NONE)
                        return host->set_reason(device, -EINVAL, "%s: fault %zu has no known \"fault\"",
                                                host->config_file(device), i);
                snprintf(orders->reason, sizeof(orders->reason), "%s",
                         f_reason ? f_reason : "refused, as it is configured");
                break;
        }
        return 0;
}

static int parse_config(const struct luvfio_host *host, struct luvfio_device *device,
                        struct json_object *root, const char *op, struct orders *orders)
{
        const char *promise;
        int r;

        if (!json_object_is_type(root, json_type_object))
                return host->set_reason(device, -EINVAL, "%s is no JSON object", host->config_file(device));
        r = parse_devices(host, device, root, orders);
        if (r >= 0)
                r = parse_score(host, device, root, orders);
        if (r < 0)
                return r;
        promise = string_member(root, "promise");
        if (json_object_object_get_ex(root, "promise", NULL) &&
            (!promise || promise_from_string(promise, &orders->promise) < 0))
                return invalid(host, device, "\"promise\" is unknown");
        return parse_faults(host, device, root, op, orders);
}

/* What the kernel can keep. */
static enum luvfio_promise kernel_promise(const struct luvfio_host *host, struct luvfio_device *device)
{
        uint64_t preserved;

        if (!LUVFIO_HOST_HAS(host, preserved) || host->preserved(device, &preserved) < 0 ||
            !(preserved & LUVFIO_PRESERVED_DMA))
                return LUVFIO_PROMISE_RESET;
        return LUVFIO_PROMISE_RUNNING;
}

/* Reads the configuration anew each time: a test changes it while everything runs. */
static int read_orders(const struct luvfio_host *host, struct luvfio_device *device, const char *op,
                       struct orders *orders)
{
        const char *path = host->config_file(device);
        struct json_object *root;
        struct stat st;
        int r;

        memset(orders, 0, sizeof(*orders));
        orders->matched = host->simulated(device);
        orders->score = SCORE_DEFAULT;
        orders->promise = kernel_promise(host, device);

        if (stat(path, &st) < 0)
                return errno == ENOENT ? 0
                                       : host->set_reason(device, -errno, "%s: %s", path, strerror(errno));
        if (st.st_size > CONFIG_SIZE_MAX)
                return host->set_reason(device, -EFBIG, "%s is too large", path);
        root = json_object_from_file(path);
        if (!root)
                return host->set_reason(device, -EINVAL, "%s is not JSON", path);
        r = parse_config(host, device, root, op, orders);
        json_object_put(root);
        return r;
}

static void crash(void)
{
        static const struct rlimit no_core;

        /* It is meant: no dump, and none of a sanitizer's reports. */
        (void) setrlimit(RLIMIT_CORE, &no_core);
        (void) signal(SIGSEGV, SIG_DFL);
        (void) raise(SIGSEGV);
}

/*
 * Begins an operation: reads the orders and does the faults that are the same for all. 1: the operation is
 * to be faulty in its own way, as *ORDERS says.
 */
static int begin(const struct luvfio_host *host, struct luvfio_device *device, const char *op,
                 struct orders *orders)
{
        int r;

        r = read_orders(host, device, op, orders);
        if (r < 0)
                return r;
        switch (orders->fault) {
        case FAULT_REFUSE:
                return host->set_reason(device, -EBUSY, "%s", orders->reason);
        case FAULT_CRASH:
                crash();
                return -EIO;
        case FAULT_HANG:
                for (;;)
                        (void) pause();
        case FAULT_LIE:
        case FAULT_GARBLE:
                return 1;
        default:
                return 0;
        }
}

static int null_match(const struct luvfio_host *host, struct luvfio_device *device,
                      enum luvfio_promise *promise)
{
        struct orders orders;
        int r;

        r = begin(host, device, "match", &orders);
        if (r < 0)
                return r;
        if (r > 0) {
                /* What no kernel does yet; or what is no promise at all. */
                *promise = orders.fault == FAULT_LIE ? LUVFIO_PROMISE_LATCHED : (enum luvfio_promise) 77;
                return 1;
        }
        *promise = orders.promise;
        return orders.matched ? orders.score : 0;
}

static int null_preflight(const struct luvfio_host *host, struct luvfio_device *device)
{
        struct orders orders;
        int r;

        r = begin(host, device, "preflight", &orders);
        if (r < 0)
                return r;
        if (r > 0 && orders.fault == FAULT_GARBLE) {
                for (int i = 0; i < 100; i++)
                        (void) host->add_finding(device, LUVFIO_NOTE, "\x01\xff", NULL, "\x1b[2J\xfe\n%d",
                                                 i);
                return 4711;
        }
        if (r == 0 && !host->simulated(device))
                return host->add_finding(device, LUVFIO_WARNING, "null-plugin",
                                         "take the device out of the null plugin's configuration",
                                         "the null plugin answers for the device and does nothing for it");
        return 0;
}

/* For operations that have nothing to do: also a lie is a success then. */
static int do_nothing(const struct luvfio_host *host, struct luvfio_device *device, const char *op)
{
        struct orders orders;
        int r;

        r = begin(host, device, op, &orders);
        if (r > 0)
                return orders.fault == FAULT_GARBLE ? 4711 : 0;
        return r;
}

static int null_quiesced(const struct luvfio_host *host, struct luvfio_device *device)
{
        return do_nothing(host, device, "quiesced");
}

static int null_plan(const struct luvfio_host *host, struct luvfio_device *device, char *plan, size_t size)
{
        struct orders orders;
        int r;

        r = begin(host, device, "plan", &orders);
        if (r < 0)
                return r;
        if (r > 0 && orders.fault == FAULT_GARBLE)
                memset(plan, 0xff, size);
        else
                snprintf(plan, size, PLAN_FORMAT, r > 0 ? "ffff:ff:1f.7" : host->address(device));
        return 0;
}

/* So that a plan that was given to the wrong device is noticed. */
static int check_plan(const struct luvfio_host *host, struct luvfio_device *device, const char *plan)
{
        char expected[64];

        snprintf(expected, sizeof(expected), PLAN_FORMAT, host->address(device));
        if (strcmp(plan, expected) != 0)
                return host->set_reason(device, -EINVAL, "the plan \"%.60s\" is not this device's", plan);
        return 0;
}

static int do_plan(const struct luvfio_host *host, struct luvfio_device *device, const char *plan,
                   const char *op)
{
        struct orders orders;
        int r;

        r = begin(host, device, op, &orders);
        if (r > 0)
                return orders.fault == FAULT_GARBLE ? 4711 : 0;
        return r < 0 ? r : check_plan(host, device, plan);
}

static int null_rebind(const struct luvfio_host *host, struct luvfio_device *device, const char *plan)
{
        return do_plan(host, device, plan, "rebind");
}

static int null_verify(const struct luvfio_host *host, struct luvfio_device *device, const char *plan)
{
        return do_plan(host, device, plan, "verify");
}

static int null_recover(const struct luvfio_host *host, struct luvfio_device *device, const char *plan)
{
        return do_plan(host, device, plan, "recover");
}

static const struct luvfio_plugin_ops null_ops = {
        .size = sizeof(null_ops),
        .match = null_match,
        .preflight = null_preflight,
        .quiesced = null_quiesced,
        .plan = null_plan,
        .rebind = null_rebind,
        .verify = null_verify,
        .recover = null_recover,
};

const struct luvfio_plugin luvfio_plugin_v1 = {
        .size = sizeof(luvfio_plugin_v1),
        .abi = LUVFIO_PLUGIN_ABI,
        .name = "null",
        .capabilities = LUVFIO_CAPABILITY_NO_DEVICE,
        .ops = &null_ops,
};
