/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <json-c/json.h>
#include <systemd/sd-id128.h>

#include "update/update-journal.h"
#include "update/update-private.h"
#include "util/io.h"
#include "util/json-util.h"
#include "util/log.h"
#include "util/string-util.h"

UpdateJournal *luv_update_journal_free(UpdateJournal *j)
{
        if (!j)
                return NULL;
        free(j->boot_id);
        free(j->update_id);
        free(j->state);
        luv_strv_free(j->frozen);
        luv_strv_free(j->units);
        luv_strv_free(j->finished);
        for (size_t i = 0; i < j->n_machines; i++) {
                free(j->machines[i].name);
                free(j->machines[i].state);
                free(j->machines[i].session);
        }
        free(j->machines);
        free(j);
        return NULL;
}

int luv_boot_id(char **ret)
{
        sd_id128_t id;
        char *s;
        int r;

        r = sd_id128_get_boot(&id);
        if (r < 0)
                return r;
        s = malloc(SD_ID128_STRING_MAX);
        if (!s)
                return -ENOMEM;
        *ret = sd_id128_to_string(id, s);
        return 0;
}

static int add_strv(struct json_object *o, const char *key, char *const *v)
{
        _cleanup_json_ struct json_object *array = json_object_new_array();

        if (!array)
                return -ENOMEM;
        for (; v && *v; v++) {
                struct json_object *s = json_object_new_string(*v);

                if (!s || json_object_array_add(array, s) < 0) {
                        json_object_put(s);
                        return -ENOMEM;
                }
        }
        return luv_json_add(o, key, TAKE_PTR(array));
}

static int get_strv(struct json_object *o, const char *key, char ***ret, char **ret_reason)
{
        struct json_object *array;
        int r;

        r = luv_json_get(o, "journal", key, json_type_array, &array, ret_reason);
        for (size_t i = 0; r >= 0 && i < json_object_array_length(array); i++) {
                struct json_object *s = json_object_array_get_idx(array, i);

                if (!json_object_is_type(s, json_type_string))
                        return luv_reason(ret_reason, -EBADMSG,
                                          "journal: %s holds something else than strings", key);
                r = luv_strv_extend(ret, json_object_get_string(s));
        }
        return r;
}

static int add_machines(struct json_object *o, const UpdateJournal *j)
{
        _cleanup_json_ struct json_object *array = json_object_new_array();

        if (!array)
                return -ENOMEM;
        for (size_t i = 0; i < j->n_machines; i++) {
                struct json_object *e = json_object_new_object();

                if (!e || json_object_array_add(array, e) < 0) {
                        json_object_put(e);
                        return -ENOMEM;
                }
                if (luv_json_add_string(e, "name", j->machines[i].name) < 0 ||
                    luv_json_add_string(e, "state", j->machines[i].state) < 0 ||
                    luv_json_add_string(e, "session", j->machines[i].session) < 0)
                        return -ENOMEM;
        }
        return luv_json_add(o, "machines", TAKE_PTR(array));
}

static int get_machines(struct json_object *o, UpdateJournal *j, char **ret_reason)
{
        struct json_object *array;
        size_t n;
        int r;

        r = luv_json_get(o, "journal", "machines", json_type_array, &array, ret_reason);
        if (r < 0)
                return r;
        n = json_object_array_length(array);
        if (n == 0)
                return 0;
        j->machines = calloc(n, sizeof(JournalMachine));
        if (!j->machines)
                return -ENOMEM;
        for (size_t i = 0; r >= 0 && i < n; i++) {
                struct json_object *e = json_object_array_get_idx(array, i);
                JournalMachine *m = j->machines + j->n_machines++;

                r = luv_json_get_string(e, "machine", "name", false, &m->name, ret_reason);
                if (r >= 0)
                        r = luv_json_get_string(e, "machine", "state", false, &m->state, ret_reason);
                if (r >= 0)
                        r = luv_json_get_string(e, "machine", "session", true, &m->session, ret_reason);
        }
        return r;
}

int luv_update_journal_write(const char *runtime_dir, const UpdateJournal *j)
{
        _cleanup_json_ struct json_object *o = json_object_new_object();
        _cleanup_close_ int dir_fd = -EBADF;
        const char *text;
        int r;

        if (!o)
                return -ENOMEM;
        dir_fd = open(runtime_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (dir_fd < 0)
                return negative_errno();
        r = luv_json_add_string(o, "bootId", j->boot_id);
        if (r >= 0)
                r = luv_json_add_string(o, "updateId", j->update_id);
        if (r >= 0)
                r = luv_json_add_string(o, "state", j->state);
        if (r >= 0)
                r = luv_json_add_bool(o, "incoming", j->incoming);
        if (r >= 0)
                r = luv_json_add_bool(o, "drained", j->drained);
        if (r >= 0)
                r = luv_json_add_bool(o, "image", j->image);
        if (r >= 0)
                r = add_strv(o, "frozen", j->frozen);
        if (r >= 0)
                r = add_strv(o, "units", j->units);
        if (r >= 0)
                r = add_strv(o, "finished", j->finished);
        if (r >= 0)
                r = luv_json_add_u64(o, "anchorBoottimeUSec", j->anchor.boottime_usec);
        if (r >= 0)
                r = luv_json_add_u64(o, "anchorRealtimeUSec", j->anchor.realtime_usec);
        if (r >= 0)
                r = luv_json_add_u64(o, "anchorTSC", j->anchor.tsc);
        if (r >= 0)
                r = add_machines(o, j);
        if (r < 0)
                return r;
        text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN);
        if (!text)
                return -ENOMEM;
        return luv_write_file_atomic(dir_fd, LUVFIO_JOURNAL_FILE, text, strlen(text), 0600);
}

int luv_update_journal_read(const char *runtime_dir, UpdateJournal **ret, char **ret_reason)
{
        _cleanup_(luv_update_journal_freep) UpdateJournal *j = NULL;
        _cleanup_json_ struct json_object *o = NULL;
        _cleanup_free_ char *path = NULL, *text = NULL;
        size_t size;
        int r;

        path = luv_strf("%s/" LUVFIO_JOURNAL_FILE, runtime_dir);
        j = calloc(1, sizeof(UpdateJournal));
        if (!path || !j)
                return -ENOMEM;
        r = luv_read_file(AT_FDCWD, path, LUVFIO_JSON_SIZE_MAX, &text, &size);
        if (r < 0)
                return r == -ENOENT ? r : luv_reason(ret_reason, r, "%s cannot be read", path);
        r = luv_json_parse(text, size, &o, ret_reason);
        if (r >= 0)
                r = luv_json_get_string(o, "journal", "bootId", false, &j->boot_id, ret_reason);
        if (r >= 0)
                r = luv_json_get_string(o, "journal", "updateId", true, &j->update_id, ret_reason);
        if (r >= 0)
                r = luv_json_get_string(o, "journal", "state", false, &j->state, ret_reason);
        if (r >= 0)
                r = luv_json_get_bool(o, "journal", "incoming", false, &j->incoming, ret_reason);
        if (r >= 0)
                r = luv_json_get_bool(o, "journal", "drained", false, &j->drained, ret_reason);
        if (r >= 0)
                r = luv_json_get_bool(o, "journal", "image", false, &j->image, ret_reason);
        if (r >= 0)
                r = get_strv(o, "frozen", &j->frozen, ret_reason);
        if (r >= 0)
                r = get_strv(o, "units", &j->units, ret_reason);
        if (r >= 0)
                r = get_strv(o, "finished", &j->finished, ret_reason);
        if (r >= 0)
                r = luv_json_get_u64(o, "journal", "anchorBoottimeUSec", false, &j->anchor.boottime_usec,
                                     ret_reason);
        if (r >= 0)
                r = luv_json_get_u64(o, "journal", "anchorRealtimeUSec", false, &j->anchor.realtime_usec,
                                     ret_reason);
        if (r >= 0)
                r = luv_json_get_u64(o, "journal", "anchorTSC", false, &j->anchor.tsc, ret_reason);
        if (r >= 0)
                r = get_machines(o, j, ret_reason);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(j);
        return 0;
}

void luv_update_journal_remove(const char *runtime_dir)
{
        _cleanup_free_ char *path = luv_strf("%s/" LUVFIO_JOURNAL_FILE, runtime_dir);

        if (path && unlink(path) < 0 && errno != ENOENT)
                luv_log_error(negative_errno(), "Cannot remove %s", path);
}

/* Notes where the update is now. What is noted is undone (or not done again) by the next run of the daemon.
 */
int luv_update_write_journal(Update *u)
{
        size_t n = luv_machine_registry_size(u->config.machines);
        _cleanup_free_ JournalMachine *machines = NULL;
        _cleanup_free_ char *boot_id = NULL;
        bool incoming = u->state == UPDATE_IDLE || u->state >= UPDATE_RESTORING;
        UpdateJournal j = {
                .update_id = u->id,
                .state = (char *) luv_update_state_to_string(u->state),
                .incoming = incoming,
                .frozen = u->frozen,
                .units = u->units_stopped ? u->units_stopped : u->units_before,
                .drained = u->units_before != NULL,
                .image = !u->config.simulated && !incoming,
                .finished = u->finished,
                .anchor = u->timeline.incoming,
        };
        int r;

        r = luv_boot_id(&boot_id);
        if (r < 0)
                return r;
        j.boot_id = boot_id;
        machines = calloc(MAX(n, (size_t) 1), sizeof(JournalMachine));
        if (!machines)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++) {
                Machine *m = luv_machine_registry_at(u->config.machines, i);

                machines[i] = (JournalMachine) {
                        .name = m->name,
                        .state = (char *) luv_machine_state_to_string(m->state),
                        .session = m->session_name,
                };
        }
        j.machines = machines;
        j.n_machines = n;
        r = luv_update_journal_write(u->config.runtime_dir, &j);
        if (r < 0)
                luv_log_error(r, "Cannot write %s/" LUVFIO_JOURNAL_FILE, u->config.runtime_dir);
        return r;
}
