/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <sys/stat.h>

#include "report/history.h"
#include "util/io.h"
#include "util/json-util.h"
#include "util/log.h"
#include "util/string-util.h"

static int open_folder(const char *state_dir, bool create)
{
        _cleanup_free_ char *path = NULL;
        int fd;

        path = luv_strf("%s/history", state_dir);
        if (!path)
                return -ENOMEM;
        if (create) {
                if (mkdir(state_dir, 0755) < 0 && errno != EEXIST)
                        return negative_errno();
                if (mkdir(path, 0755) < 0 && errno != EEXIST)
                        return negative_errno();
        }
        fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        return fd < 0 ? negative_errno() : fd;
}

static int is_history(const struct dirent *e)
{
        size_t n = strlen(e->d_name);

        return n > STRLEN(".json") && streq(e->d_name + n - STRLEN(".json"), ".json");
}

/* The names, oldest first. */
static int list_names(int dir_fd, struct dirent ***ret)
{
        int n = scandirat(dir_fd, ".", ret, is_history, alphasort);

        return n < 0 ? negative_errno() : n;
}

static void free_names(struct dirent **names, int n)
{
        for (int i = 0; i < n; i++)
                free(names[i]);
        free(names);
}

static int add_machines(struct json_object *o, const Report *r)
{
        struct json_object *array, *e;
        int q;

        q = luv_json_add_array(o, "machines", &array);
        for (size_t i = 0; q >= 0 && i < r->n_machines; i++) {
                const ReportMachine *m = r->machines + i;

                q = luv_json_append_object(array, &e);
                if (q >= 0)
                        q = luv_json_add_string(e, "machine", m->machine);
                if (q >= 0 && m->blackout_usec != UINT64_MAX)
                        q = luv_json_add_u64(e, "blackoutUSec", m->blackout_usec);
                if (q >= 0)
                        q = luv_json_add_string(e, "strandedReason", m->stranded_reason);
        }
        return q;
}

static int add_phases(struct json_object *o, const Report *r)
{
        struct json_object *array, *e;
        int q;

        q = luv_json_add_array(o, "phases", &array);
        for (size_t i = 0; q >= 0 && i < r->n_phases; i++) {
                const ReportPhase *p = r->phases + i;

                q = luv_json_append_object(array, &e);
                if (q >= 0)
                        q = luv_json_add_string(e, "name", p->name);
                if (q >= 0)
                        q = luv_json_add_string(e, "machine", p->machine);
                if (q >= 0)
                        q = luv_json_add_u64(e, "startUSec", p->start_usec);
                if (q >= 0)
                        q = luv_json_add_u64(e, "durationUSec", p->duration_usec);
        }
        return q;
}

static int report_to_json(const Report *r, struct json_object **ret)
{
        _cleanup_json_ struct json_object *o = json_object_new_object();
        int q;

        if (!o)
                return -ENOMEM;
        q = luv_json_add_string(o, "updateId", r->update_id);
        if (q >= 0)
                q = luv_json_add_string(o, "result", luv_report_result_to_string(r->result));
        if (q >= 0)
                q = luv_json_add_string(o, "reason", r->reason);
        if (q >= 0)
                q = luv_json_add_u64(o, "startedRealtimeUSec", r->started_realtime_usec);
        if (q >= 0)
                q = luv_json_add_string(o, "fromKernel", r->from_kernel);
        if (q >= 0)
                q = luv_json_add_string(o, "toKernel", r->to_kernel);
        if (q >= 0)
                q = luv_json_add_string(o, "clock", luv_timeline_clock_to_string(r->clock));
        if (q >= 0)
                q = add_machines(o, r);
        if (q >= 0)
                q = add_phases(o, r);
        if (q < 0)
                return q;
        *ret = TAKE_PTR(o);
        return 0;
}

static int read_machines(struct json_object *o, Report *r, char **ret_reason)
{
        struct json_object *array;
        int q;

        q = luv_json_get(o, "report", "machines", json_type_array, &array, ret_reason);
        for (size_t i = 0; q >= 0 && i < json_object_array_length(array); i++) {
                struct json_object *e = json_object_array_get_idx(array, i);
                _cleanup_free_ char *name = NULL, *reason = NULL;
                uint64_t blackout = UINT64_MAX;

                q = luv_json_get_string(e, "machine", "machine", false, &name, ret_reason);
                if (q >= 0)
                        q = luv_json_get_string(e, "machine", "strandedReason", true, &reason, ret_reason);
                if (q >= 0 && json_object_object_get(e, "blackoutUSec"))
                        q = luv_json_get_u64(e, "machine", "blackoutUSec", false, &blackout, ret_reason);
                if (q >= 0)
                        q = luv_report_add_machine(r, name, blackout, reason);
        }
        return q;
}

static int read_phases(struct json_object *o, Report *r, char **ret_reason)
{
        struct json_object *array;
        int q;

        q = luv_json_get(o, "report", "phases", json_type_array, &array, ret_reason);
        for (size_t i = 0; q >= 0 && i < json_object_array_length(array); i++) {
                struct json_object *e = json_object_array_get_idx(array, i);
                _cleanup_free_ char *name = NULL, *machine = NULL;
                uint64_t start, duration;

                q = luv_json_get_string(e, "phase", "name", false, &name, ret_reason);
                if (q >= 0)
                        q = luv_json_get_string(e, "phase", "machine", true, &machine, ret_reason);
                if (q >= 0)
                        q = luv_json_get_u64(e, "phase", "startUSec", false, &start, ret_reason);
                if (q >= 0)
                        q = luv_json_get_u64(e, "phase", "durationUSec", false, &duration, ret_reason);
                if (q >= 0)
                        q = luv_report_add_phase(r, name, machine, start, duration);
        }
        return q;
}

static int report_from_json(struct json_object *o, Report **ret, char **ret_reason)
{
        _cleanup_(luv_report_freep) Report *r = calloc(1, sizeof(Report));
        _cleanup_free_ char *result = NULL, *clock = NULL;
        int q;

        if (!r)
                return -ENOMEM;
        q = luv_json_get_string(o, "report", "updateId", false, &r->update_id, ret_reason);
        if (q >= 0)
                q = luv_json_get_string(o, "report", "result", false, &result, ret_reason);
        if (q >= 0)
                q = luv_json_get_string(o, "report", "reason", true, &r->reason, ret_reason);
        if (q >= 0)
                q = luv_json_get_u64(o, "report", "startedRealtimeUSec", false, &r->started_realtime_usec,
                                     ret_reason);
        if (q >= 0)
                q = luv_json_get_string(o, "report", "fromKernel", false, &r->from_kernel, ret_reason);
        if (q >= 0)
                q = luv_json_get_string(o, "report", "toKernel", true, &r->to_kernel, ret_reason);
        if (q >= 0)
                q = luv_json_get_string(o, "report", "clock", false, &clock, ret_reason);
        if (q >= 0)
                q = read_machines(o, r, ret_reason);
        if (q >= 0)
                q = read_phases(o, r, ret_reason);
        if (q < 0)
                return q;
        r->result = luv_report_result_from_string(result);
        r->clock = luv_timeline_clock_from_string(clock);
        if (r->result < 0 || r->clock < 0)
                return luv_reason(ret_reason, -EBADMSG, "unknown result \"%s\" or clock \"%s\"", result,
                                  clock);
        *ret = TAKE_PTR(r);
        return 0;
}

static void remove_oldest(int dir_fd)
{
        struct dirent **names = NULL;
        int n;

        n = list_names(dir_fd, &names);
        for (int i = 0; i + (int) LUVFIO_HISTORY_MAX < n; i++)
                if (unlinkat(dir_fd, names[i]->d_name, 0) < 0)
                        luv_log_error(negative_errno(), "Cannot remove the old report %s", names[i]->d_name);
        free_names(names, n);
}

int luv_history_write(const char *state_dir, const Report *r)
{
        _cleanup_json_ struct json_object *o = NULL;
        _cleanup_free_ char *name = NULL;
        _cleanup_close_ int dir_fd = -EBADF;
        const char *text;
        int q;

        dir_fd = open_folder(state_dir, /* create= */ true);
        if (dir_fd < 0)
                return dir_fd;
        q = report_to_json(r, &o);
        if (q < 0)
                return q;
        text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY);
        if (!text)
                return -ENOMEM;
        name = luv_strf("%020" PRIu64 "-%s.json", r->started_realtime_usec, r->update_id);
        if (!name)
                return -ENOMEM;
        q = luv_write_file_atomic(dir_fd, name, text, strlen(text), 0644);
        if (q < 0)
                return q;
        remove_oldest(dir_fd);
        return 0;
}

static int read_report(int dir_fd, const char *name, Report **ret)
{
        _cleanup_json_ struct json_object *o = NULL;
        _cleanup_free_ char *text = NULL, *reason = NULL;
        size_t size;
        int r;

        r = luv_read_file(dir_fd, name, LUVFIO_JSON_SIZE_MAX, &text, &size);
        if (r >= 0)
                r = luv_json_parse(text, size, &o, &reason);
        if (r >= 0)
                r = report_from_json(o, ret, &reason);
        if (r < 0)
                luv_log_warning("The report %s in the history cannot be read and is left out: %s", name,
                                reason ? reason : strerror(-r));
        return r;
}

void luv_history_free(Report **reports, size_t n)
{
        for (size_t i = 0; i < n; i++)
                luv_report_free(reports[i]);
        free(reports);
}

int luv_history_read(const char *state_dir, size_t max, Report ***ret, size_t *ret_n)
{
        _cleanup_close_ int dir_fd = -EBADF;
        struct dirent **names = NULL;
        Report **reports = NULL;
        size_t n_reports = 0;
        int n;

        dir_fd = open_folder(state_dir, /* create= */ false);
        if (dir_fd < 0 && dir_fd != -ENOENT)
                return dir_fd;
        n = dir_fd >= 0 ? list_names(dir_fd, &names) : 0;
        if (n < 0)
                return n;
        if (n > 0) {
                reports = calloc((size_t) n, sizeof(Report *));
                if (!reports) {
                        free_names(names, n);
                        return -ENOMEM;
                }
        }
        for (int i = n - 1; i >= 0 && n_reports < max; i--)
                if (read_report(dir_fd, names[i]->d_name, reports + n_reports) >= 0)
                        n_reports++;
        free_names(names, n);
        *ret = reports;
        *ret_n = n_reports;
        return 0;
}

int luv_history_find(const char *state_dir, const char *update_id, Report **ret)
{
        _cleanup_close_ int dir_fd = -EBADF;
        struct dirent **names = NULL;
        Report *found = NULL;
        int n;

        dir_fd = open_folder(state_dir, /* create= */ false);
        if (dir_fd < 0)
                return dir_fd;
        n = list_names(dir_fd, &names);
        if (n < 0)
                return n;
        for (int i = n - 1; i >= 0 && !found; i--) {
                if (update_id && !strstr(names[i]->d_name, update_id))
                        continue;
                if (read_report(dir_fd, names[i]->d_name, &found) < 0)
                        continue;
                if (update_id && !streq(found->update_id, update_id))
                        found = luv_report_free(found);
        }
        free_names(names, n);
        if (!found)
                return -ENOENT;
        *ret = found;
        return 0;
}
