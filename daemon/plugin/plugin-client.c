/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <dirent.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <systemd/sd-varlink.h>

#include "plugin/plugin-client.h"
#include "util/string-util.h"
#include "util/time-util.h"
#include "varlink/idl.h"

#define FINDINGS_MAX 64u
#define PLAN_MAX ((size_t) 16 * 1024)
/* Of all calls; the others wait for their turn. Each is a process in the host, and in a simulation two. */
#define RUNNING_MAX 32u
/* The host's own limit for an operation. */
#define TIMEOUT_MAX_USEC (600 * USEC_PER_SEC)

typedef struct OpInfo {
        const char *name, *method;
} OpInfo;

static const OpInfo op_info[_PLUGIN_OP_MAX] = {
        [PLUGIN_OP_MATCH] = { "match", "org.luvfio.Plugin.Match" },
        [PLUGIN_OP_PREFLIGHT] = { "preflight", "org.luvfio.Plugin.Preflight" },
        [PLUGIN_OP_QUIESCED] = { "quiesced", "org.luvfio.Plugin.Quiesced" },
        [PLUGIN_OP_PLAN] = { "plan", "org.luvfio.Plugin.Plan" },
        [PLUGIN_OP_REBIND] = { "rebind", "org.luvfio.Plugin.Rebind" },
        [PLUGIN_OP_VERIFY] = { "verify", "org.luvfio.Plugin.Verify" },
        [PLUGIN_OP_RECOVER] = { "recover", "org.luvfio.Plugin.Recover" },
};

struct PluginManager {
        unsigned n_ref;
        sd_event *event;
        char *socket_dir;
        char *spawn;
        char **spawn_plugins;
        unsigned n_running;
        PluginCall *waiting, **waiting_tail;
};

/* One plugin that is asked; MATCH asks all of them. */
typedef struct Question {
        PluginCall *call;
        char *plugin;
        sd_varlink *link;
        bool answered;
} Question;

struct PluginCall {
        PluginManager *manager;
        PluginCall *next_waiting;
        bool running, waiting;
        PluginOp op;
        char *device, *asked_plan;
        uint64_t preserved, deadline, timeout;
        PluginDone done;
        void *userdata;
        Question *questions;
        size_t n_questions, n_pending;
        sd_event_source *timer, *finish;
        bool in_callback, freed;

        /* the result */
        int error;
        char *reason, *plugin, *promise, *plan;
        int64_t score;
        PluginFinding *findings;
        size_t n_findings;
};

static PluginManager *manager_free(PluginManager *m)
{
        luv_strv_free(m->spawn_plugins);
        free(m->spawn);
        free(m->socket_dir);
        sd_event_unref(m->event);
        free(m);
        return NULL;
}

PluginManager *luv_plugin_manager_unref(PluginManager *m)
{
        if (!m || --m->n_ref > 0)
                return NULL;
        return manager_free(m);
}

int luv_plugin_manager_new(sd_event *event, const char *socket_dir, const char *spawn,
                           char *const *spawn_plugins, PluginManager **ret)
{
        _cleanup_(luv_plugin_manager_unrefp) PluginManager *m = calloc(1, sizeof(*m));

        if (!m)
                return -ENOMEM;
        m->n_ref = 1;
        m->waiting_tail = &m->waiting;
        m->event = sd_event_ref(event);
        if (luv_free_and_strdup(&m->socket_dir, socket_dir) < 0 ||
            luv_free_and_strdup(&m->spawn, spawn) < 0 || luv_strv_copy(spawn_plugins, &m->spawn_plugins) < 0)
                return -ENOMEM;

        *ret = TAKE_PTR(m);
        return 0;
}

static void close_questions(PluginCall *c)
{
        for (size_t i = 0; i < c->n_questions; i++) {
                Question *q = &c->questions[i];

                /* The host stops what it does for a connection that is closed. */
                if (q->link)
                        (void) sd_varlink_bind_reply(q->link, NULL);
                q->link = sd_varlink_close_unref(q->link);
        }
}

static void leave_queue(PluginCall *c)
{
        PluginManager *m = c->manager;

        for (PluginCall **p = &m->waiting; c->waiting && *p; p = &(*p)->next_waiting)
                if (*p == c) {
                        *p = c->next_waiting;
                        if (!*p)
                                m->waiting_tail = p;
                        break;
                }
        c->waiting = false;
}

static void start_waiting(PluginManager *m);

/* It asks nobody any more: the next one can. */
static void call_stop(PluginCall *c)
{
        close_questions(c);
        if (c->waiting)
                leave_queue(c);
        if (!c->running)
                return;
        c->running = false;
        c->manager->n_running--;
        start_waiting(c->manager);
}

static void call_destroy(PluginCall *c)
{
        if (c->manager)
                call_stop(c);
        for (size_t i = 0; i < c->n_questions; i++)
                free(c->questions[i].plugin);
        free(c->questions);
        sd_event_source_disable_unref(c->timer);
        sd_event_source_disable_unref(c->finish);
        for (size_t i = 0; i < c->n_findings; i++) {
                free(c->findings[i].id);
                free(c->findings[i].severity);
                free(c->findings[i].message);
                free(c->findings[i].remedy);
        }
        free(c->findings);
        free(c->reason);
        free(c->plugin);
        free(c->promise);
        free(c->plan);
        free(c->device);
        free(c->asked_plan);
        luv_plugin_manager_unref(c->manager);
        free(c);
}

PluginCall *luv_plugin_call_free(PluginCall *c)
{
        if (!c)
                return NULL;

        /* The result that the callback looks at lives as long as the callback. */
        if (c->in_callback)
                c->freed = true;
        else
                call_destroy(c);
        return NULL;
}

/* The first failure counts: a plugin that cannot be asked makes the answer of the others worth nothing. */
_printf_(3, 4) static void fail(PluginCall *c, int error, const char *format, ...)
{
        va_list ap;

        if (c->error != 0)
                return;
        c->error = error;
        va_start(ap, format);
        c->reason = luv_strfv(format, ap);
        va_end(ap);
}

static int on_finish(sd_event_source *s, void *userdata)
{
        PluginCall *c = userdata;
        PluginResult result;

        c->finish = sd_event_source_disable_unref(c->finish);
        c->timer = sd_event_source_disable_unref(c->timer);
        call_stop(c);

        if (c->error == 0 && !c->plugin)
                fail(c, -ENODEV, "no plugin answers for device %s", c->device);

        result = (PluginResult) { .error = c->error, .plugin = c->plugin };
        if (c->error != 0)
                result.reason = c->reason ? c->reason : "out of memory";
        else {
                result.promise = c->promise;
                result.plan = c->plan;
                result.findings = c->findings;
                result.n_findings = c->n_findings;
        }

        c->in_callback = true;
        c->done(&result, c->userdata);
        c->in_callback = false;
        if (c->freed)
                call_destroy(c);
        return 0;
}

/* The callback comes from the event loop, never from within anything of ours or of the caller's. */
static int finish_soon(PluginCall *c)
{
        if (c->finish)
                return 0;
        return sd_event_add_defer(c->manager->event, &c->finish, on_finish, c);
}

/* A call must not be left waiting forever, so this may not fail. */
static void finish_or_exit(PluginCall *c)
{
        if (finish_soon(c) < 0)
                (void) sd_event_exit(c->manager->event, -ENOMEM);
}

static void answered(Question *q)
{
        PluginCall *c = q->call;

        if (q->answered)
                return;
        q->answered = true;
        c->n_pending--;
        if (c->n_pending == 0 || c->error != 0)
                finish_or_exit(c);
}

static int on_deadline(sd_event_source *s, uint64_t usec, void *userdata)
{
        PluginCall *c = userdata;

        for (size_t i = 0; i < c->n_questions; i++) {
                Question *q = &c->questions[i];

                if (q->answered)
                        continue;
                fail(c, -ETIME, "plugin %s did not finish %s for device %s within %.1f s", q->plugin,
                     op_info[c->op].name, c->device, (double) c->timeout / (double) USEC_PER_SEC);
                answered(q);
                break;
        }
        return 0;
}

static const char *get_string(sd_json_variant *v, const char *key)
{
        sd_json_variant *s = sd_json_variant_by_key(v, key);

        return s && sd_json_variant_is_string(s) ? sd_json_variant_string(s) : NULL;
}

static bool promise_valid(const char *s)
{
        return s && (streq(s, "reset") || streq(s, "running") || streq(s, "latched"));
}

static bool severity_valid(const char *s)
{
        return s && (streq(s, "blocker") || streq(s, "warning") || streq(s, "note"));
}

/* -EBADMSG: not what the interface says. */
static int take_match(Question *q, sd_json_variant *reply)
{
        PluginCall *c = q->call;
        sd_json_variant *v = sd_json_variant_by_key(reply, "score");
        const char *promise = get_string(reply, "promise");
        int64_t score;

        if (!v || !sd_json_variant_is_integer(v))
                return -EBADMSG;
        score = sd_json_variant_integer(v);
        if (score == 0)
                return 0;
        if (score < 0 || score > 1000 || !promise_valid(promise))
                return -EBADMSG;

        /* Answers come in any order: among equals the first by name, so that it is always the same. */
        if (c->plugin && (score < c->score || (score == c->score && strcmp(q->plugin, c->plugin) > 0)))
                return 0;
        c->score = score;
        if (luv_free_and_strdup(&c->plugin, q->plugin) < 0)
                return -ENOMEM;
        return luv_free_and_strdup(&c->promise, promise);
}

static int take_findings(PluginCall *c, sd_json_variant *reply)
{
        sd_json_variant *v = sd_json_variant_by_key(reply, "findings");
        size_t n;

        if (!v || !sd_json_variant_is_array(v))
                return -EBADMSG;
        n = sd_json_variant_elements(v);
        if (n > FINDINGS_MAX)
                return -EBADMSG;
        c->findings = calloc(MAX(n, (size_t) 1), sizeof(*c->findings));
        if (!c->findings)
                return -ENOMEM;

        for (size_t i = 0; i < n; i++) {
                sd_json_variant *e = sd_json_variant_by_index(v, i);
                const char *id = get_string(e, "id"), *severity = get_string(e, "severity");
                const char *message = get_string(e, "message");
                PluginFinding *f = &c->findings[i];

                if (!id || !*id || !message || !*message || !severity_valid(severity))
                        return -EBADMSG;
                c->n_findings++;
                if (luv_free_and_strdup(&f->id, id) < 0 || luv_free_and_strdup(&f->severity, severity) < 0 ||
                    luv_free_and_strdup(&f->message, message) < 0 ||
                    luv_free_and_strdup(&f->remedy, get_string(e, "remedy")) < 0)
                        return -ENOMEM;
        }
        return 0;
}

static int take_plan(PluginCall *c, sd_json_variant *reply)
{
        const char *plan = get_string(reply, "plan");

        if (!plan || strlen(plan) >= PLAN_MAX)
                return -EBADMSG;
        return luv_free_and_strdup(&c->plan, plan);
}

static void take_reply(Question *q, sd_json_variant *reply)
{
        PluginCall *c = q->call;
        int r = 0;

        if (c->op == PLUGIN_OP_MATCH)
                r = take_match(q, reply);
        else if (c->op == PLUGIN_OP_PREFLIGHT)
                r = take_findings(c, reply);
        else if (c->op == PLUGIN_OP_PLAN)
                r = take_plan(c, reply);

        if (r == -ENOMEM)
                fail(c, r, "out of memory");
        else if (r < 0)
                fail(c, -EREMOTEIO,
                     "plugin %s answered %s for device %s with something that is no answer to it", q->plugin,
                     op_info[c->op].name, c->device);
}

static int on_reply(sd_varlink *link, sd_json_variant *parameters, const char *error_id,
                    sd_varlink_reply_flags_t flags, void *userdata)
{
        Question *q = userdata;
        PluginCall *c = q->call;
        const char *op = op_info[c->op].name;
        const char *said;

        if (q->answered || c->error != 0)
                return 0;

        if (!error_id)
                take_reply(q, parameters);
        else if (streq(error_id, SD_VARLINK_ERROR_DISCONNECTED))
                fail(c, -EPIPE, "plugin %s died while it did %s for device %s", q->plugin, op, c->device);
        else {
                said = get_string(parameters, "reason");
                if (!said)
                        said = error_id;
                if (streq(error_id, VL_ERROR_PLUGIN("Failed")))
                        fail(c, -EREMOTEIO, "plugin %s, %s for device %s: %s", q->plugin, op, c->device,
                             said);
                else if (streq(error_id, VL_ERROR_PLUGIN("Died")))
                        fail(c, -EPIPE, "plugin %s died while it did %s for device %s: %s", q->plugin, op,
                             c->device, said);
                else if (streq(error_id, VL_ERROR_PLUGIN("TimedOut")))
                        fail(c, -ETIME, "plugin %s did not finish %s for device %s: %s", q->plugin, op,
                             c->device, said);
                else
                        fail(c, -EREMOTEIO, "plugin %s cannot be asked to do %s for device %s: %s",
                             q->plugin, op, c->device, said);
        }
        answered(q);
        return 0;
}

static int connect_plugin(PluginManager *m, const char *plugin, sd_varlink **ret)
{
        _cleanup_free_ char *path = NULL;
        char *argv[] = { m->spawn, (char *) "--simulate", (char *) plugin, NULL };

        if (m->spawn)
                return sd_varlink_connect_exec(ret, m->spawn, argv);
        path = luv_strf("%s/%s", strempty(m->socket_dir), plugin);
        if (!path)
                return -ENOMEM;
        return sd_varlink_connect_address(ret, path);
}

static int ask(Question *q)
{
        PluginCall *c = q->call;
        uint64_t left = luv_usec_left(c->deadline);
        int r;

        /* A deadline that is past is not asked for: the timer tells. */
        if (left == 0)
                return 0;
        r = connect_plugin(c->manager, q->plugin, &q->link);
        if (r < 0)
                return r;
        sd_varlink_set_userdata(q->link, q);
        r = sd_varlink_set_relative_timeout(q->link, UINT64_MAX); /* ours counts */
        if (r >= 0)
                r = sd_varlink_bind_reply(q->link, on_reply);
        if (r >= 0)
                r = sd_varlink_attach_event(q->link, c->manager->event, 0);
        if (r >= 0)
                r = sd_varlink_invokebo(q->link, op_info[c->op].method,
                                        SD_JSON_BUILD_PAIR_STRING("device", c->device),
                                        SD_JSON_BUILD_PAIR_CONDITION(!!c->asked_plan, "plan",
                                                                     SD_JSON_BUILD_STRING(c->asked_plan)),
                                        SD_JSON_BUILD_PAIR_CONDITION(c->preserved != FD_PRESERVED_UNKNOWN,
                                                                     "preserved",
                                                                     SD_JSON_BUILD_UNSIGNED(c->preserved)),
                                        SD_JSON_BUILD_PAIR_UNSIGNED("timeoutUSec",
                                                                    MIN(left, TIMEOUT_MAX_USEC)));
        return MIN(r, 0);
}

static int by_name(const void *a, const void *b)
{
        return strcmp(*(char *const *) a, *(char *const *) b);
}

static void closedirp(DIR **d)
{
        if (*d)
                (void) closedir(*d);
}

/* Every plugin there is. */
static int list_plugins(PluginManager *m, char ***ret)
{
        _cleanup_strv_ char **names = NULL;
        _cleanup_(closedirp) DIR *dir = NULL;
        int r;

        if (m->spawn)
                return luv_strv_copy(m->spawn_plugins, ret);

        dir = m->socket_dir ? opendir(m->socket_dir) : NULL;
        if (!dir && m->socket_dir && errno != ENOENT)
                return negative_errno();
        while (dir) {
                struct dirent *e;
                struct stat st;

                errno = 0;
                e = readdir(dir);
                if (!e) {
                        if (errno > 0)
                                return -errno;
                        break;
                }
                if (*e->d_name == '.' || fstatat(dirfd(dir), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
                    !S_ISSOCK(st.st_mode))
                        continue;
                r = luv_strv_extend(&names, e->d_name);
                if (r < 0)
                        return r;
        }
        if (names)
                qsort(names, luv_strv_length(names), sizeof(*names), by_name);
        *ret = TAKE_PTR(names);
        return 0;
}

static void call_start(PluginCall *c)
{
        c->running = true;
        c->manager->n_running++;
        for (size_t i = 0; i < c->n_questions && c->error == 0; i++) {
                Question *q = &c->questions[i];
                int r;

                r = ask(q);
                if (r < 0) {
                        fail(c, r == -ENOMEM ? r : -EPIPE,
                             "plugin %s cannot be reached to do %s for device %s: %s", q->plugin,
                             op_info[c->op].name, c->device, strerror(-r));
                        answered(q);
                }
        }
        if (c->n_questions == 0)
                finish_or_exit(c);
}

static void start_waiting(PluginManager *m)
{
        while (m->waiting && m->n_running < RUNNING_MAX) {
                PluginCall *c = m->waiting;

                leave_queue(c);
                call_start(c);
        }
}

static int add_questions(PluginCall *c, char *const *plugins)
{
        size_t n = luv_strv_length(plugins);

        c->questions = calloc(n + 1, sizeof(*c->questions));
        if (!c->questions)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++) {
                Question *q = &c->questions[i];

                q->call = c;
                q->plugin = strdup(plugins[i]);
                if (!q->plugin)
                        return -ENOMEM;
                c->n_questions++;
        }
        c->n_pending = c->n_questions;
        return 0;
}

int luv_plugin_call(PluginManager *m, PluginOp op, const char *plugin, const char *device, const char *plan,
                    uint64_t preserved, uint64_t deadline, PluginDone done, void *userdata, PluginCall **ret)
{
        _cleanup_(luv_plugin_call_freep) PluginCall *c = NULL;
        _cleanup_strv_ char **names = NULL;
        int r;

        if (op < 0 || op >= _PLUGIN_OP_MAX || !plugin != (op == PLUGIN_OP_MATCH) ||
            !plan != (op < PLUGIN_OP_REBIND) || !done)
                return -EINVAL;

        c = calloc(1, sizeof(*c));
        if (!c)
                return -ENOMEM;
        m->n_ref++;
        c->manager = m;
        c->op = op;
        c->done = done;
        c->userdata = userdata;
        c->preserved = op < PLUGIN_OP_REBIND ? preserved : FD_PRESERVED_UNKNOWN;
        c->deadline = deadline;
        c->timeout = luv_usec_left(deadline);
        if (luv_free_and_strdup(&c->device, device) < 0 || luv_free_and_strdup(&c->asked_plan, plan) < 0 ||
            luv_free_and_strdup(&c->plugin, plugin) < 0)
                return -ENOMEM;
        r = plugin ? luv_strv_extend(&names, plugin) : list_plugins(m, &names);
        if (r >= 0)
                r = add_questions(c, names);
        if (r >= 0 && deadline > 0)
                r = sd_event_add_time(m->event, &c->timer, CLOCK_BOOTTIME, deadline, USEC_PER_MSEC,
                                      on_deadline, c);
        if (r < 0)
                return r;

        c->waiting = true;
        *m->waiting_tail = c;
        m->waiting_tail = &c->next_waiting;
        start_waiting(m);

        *ret = TAKE_PTR(c);
        return 0;
}
