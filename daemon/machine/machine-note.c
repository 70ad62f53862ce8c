/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <dirent.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <sys/stat.h>

#include "machine/machine-private.h"
#include "machine/peer.h"
#include "util/io.h"
#include "util/json-util.h"
#include "util/log.h"
#include "util/string-util.h"

/*
 * A file a machine, so that the daemon can be restarted under running machines: who owns which name, with
 * which secret. Of no use in another boot.
 */

#define NOTE_SIZE_MAX ((size_t) 64 * 1024)

static int open_folder(MachineRegistry *r)
{
        int fd;

        if (!r->folder)
                return -ENOENT;
        if (mkdir(r->folder, 0700) < 0 && errno != EEXIST)
                return negative_errno();
        fd = open(r->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        return fd < 0 ? negative_errno() : fd;
}

/* What has to be there again before the machine can go over a jump: its own files and what is missing
 * already. */
static int add_files(struct json_object *o, const Machine *m)
{
        _cleanup_json_ struct json_object *array = json_object_new_array();

        if (!array)
                return -ENOMEM;
        for (size_t i = 0; i < m->n_fds + luv_strv_length(m->missing); i++) {
                const char *name = i < m->n_fds ? m->fds[i]->name : m->missing[i - m->n_fds];
                struct json_object *s;

                if (i < m->n_fds && m->fds[i]->kind == FD_KIND_STATE)
                        continue;
                s = json_object_new_string(name);
                if (!s || json_object_array_add(array, s) < 0) {
                        json_object_put(s);
                        return -ENOMEM;
                }
        }
        return luv_json_add(o, "files", TAKE_PTR(array));
}

static int get_files(struct json_object *o, char ***ret, char **ret_reason)
{
        struct json_object *array;
        int r;

        r = luv_json_get(o, "note", "files", json_type_array, &array, ret_reason);
        for (size_t i = 0; r >= 0 && i < json_object_array_length(array); i++) {
                struct json_object *s = json_object_array_get_idx(array, i);

                if (!json_object_is_type(s, json_type_string))
                        return luv_reason(ret_reason, -EBADMSG,
                                          "note: files holds something else than strings");
                r = luv_strv_extend(ret, json_object_get_string(s));
        }
        return r;
}

int luv_machine_note(Machine *m)
{
        _cleanup_json_ struct json_object *o = NULL;
        _cleanup_close_ int dir_fd = -EBADF;
        uint64_t start_time = 0;
        const char *text;
        int r;

        if (!m->registry->folder)
                return 0;
        dir_fd = open_folder(m->registry);
        if (dir_fd < 0)
                return dir_fd;
        r = luv_process_start_time(m->owner.pid, &start_time);
        if (r < 0)
                return r == -ESRCH ? 0 : r;
        o = json_object_new_object();
        if (!o)
                return -ENOMEM;
        r = luv_json_add_string(o, "name", m->name);
        if (r >= 0)
                r = luv_json_add_string(o, "secret", m->secret);
        if (r >= 0)
                r = luv_json_add_string(o, "vmm", m->vmm);
        if (r >= 0)
                r = luv_json_add_string(o, "unit", m->owner.unit);
        if (r >= 0)
                r = luv_json_add_u64(o, "uid", m->owner.uid);
        if (r >= 0)
                r = luv_json_add_u64(o, "pid", (uint64_t) m->owner.pid);
        if (r >= 0)
                r = luv_json_add_u64(o, "startTime", start_time);
        if (r >= 0)
                r = luv_json_add_u64(o, "generation", m->generation);
        if (r >= 0)
                r = luv_json_add_u64(o, "tries", m->tries);
        if (r >= 0)
                r = add_files(o, m);
        if (r < 0)
                return r;
        text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN);
        if (!text)
                return -ENOMEM;
        return luv_write_file_atomic(dir_fd, m->name, text, strlen(text), 0600);
}

void luv_registry_remove_note(Machine *m)
{
        _cleanup_free_ char *path = NULL;

        if (!m->registry->folder)
                return;
        path = luv_strf("%s/%s", m->registry->folder, m->name);
        if (path && unlink(path) < 0 && errno != ENOENT)
                luv_log_error(negative_errno(), "Cannot remove the note of machine %s", m->name);
}

static int load_note(MachineRegistry *r, int dir_fd, const char *name)
{
        _cleanup_free_ char *text = NULL, *reason = NULL, *named = NULL, *secret = NULL, *vmm = NULL,
                            *unit = NULL;
        _cleanup_(luv_machine_owner_done) MachineOwner owner = { .pidfd = -EBADF };
        _cleanup_json_ struct json_object *o = NULL;
        _cleanup_strv_ char **files = NULL;
        uint64_t uid, pid, start_time, generation, tries;
        _cleanup_close_ int pidfd = -EBADF;
        Machine *m;
        size_t size;
        int k;

        k = luv_read_file(dir_fd, name, NOTE_SIZE_MAX, &text, &size);
        if (k >= 0)
                k = luv_json_parse(text, size, &o, &reason);
        if (k >= 0)
                k = luv_json_get_string(o, "note", "name", false, &named, &reason);
        if (k >= 0)
                k = luv_json_get_string(o, "note", "secret", false, &secret, &reason);
        if (k >= 0)
                k = luv_json_get_string(o, "note", "vmm", true, &vmm, &reason);
        if (k >= 0)
                k = luv_json_get_string(o, "note", "unit", true, &unit, &reason);
        if (k >= 0)
                k = luv_json_get_u64(o, "note", "uid", false, &uid, &reason);
        if (k >= 0)
                k = luv_json_get_u64(o, "note", "pid", false, &pid, &reason);
        if (k >= 0)
                k = luv_json_get_u64(o, "note", "startTime", false, &start_time, &reason);
        if (k >= 0)
                k = luv_json_get_u64(o, "note", "generation", false, &generation, &reason);
        if (k >= 0)
                k = luv_json_get_u64(o, "note", "tries", false, &tries, &reason);
        if (k >= 0)
                k = get_files(o, &files, &reason);
        if (k >= 0 && (!streq(named, name) || !luv_id_valid(secret)))
                k = luv_reason(&reason, -EBADMSG, "name or secret are not valid");
        if (k < 0) {
                luv_log_warning("The note of machine %s cannot be read and is dropped: %s", name,
                                reason ? reason : strerror(-k));
                return k;
        }

        pidfd = luv_process_open((pid_t) pid, start_time);
        if (pidfd < 0)
                return pidfd;
        k = luv_peer_identify((uid_t) uid, (pid_t) pid, pidfd, &owner);
        if (k < 0)
                return k;
        /* It was bound to this unit, wherever its process may have been moved since. */
        if (luv_free_and_strdup(&owner.unit, unit) < 0)
                return -ENOMEM;
        k = luv_machine_new(r, name, &owner, MACHINE_RUNNING, &m);
        if (k < 0)
                return k;
        free(m->secret);
        m->secret = TAKE_PTR(secret);
        m->vmm = TAKE_PTR(vmm);
        m->generation = generation;
        m->tries = tries;
        m->missing = TAKE_PTR(files);
        luv_log_info("Machine %s (pid %i) was registered before a restart of luvfiod; its VMM has to come "
                     "back",
                     name, (int) pid);
        return 0;
}

static int walk(MachineRegistry *r, bool load)
{
        _cleanup_close_ int dir_fd = -EBADF;
        struct dirent **names = NULL;
        int n;

        dir_fd = open_folder(r);
        if (dir_fd < 0)
                return dir_fd == -ENOENT ? 0 : dir_fd;
        n = scandirat(dir_fd, ".", &names, NULL, NULL);
        if (n < 0)
                return negative_errno();
        for (int i = 0; i < n; i++) {
                const char *name = names[i]->d_name;

                if (!streq(name, ".") && !streq(name, "..") &&
                    (!load || !luv_machine_name_valid(name) || load_note(r, dir_fd, name) < 0))
                        (void) unlinkat(dir_fd, name, 0);
                free(names[i]);
        }
        free(names);
        return 0;
}

int luv_machine_registry_load(MachineRegistry *r)
{
        return walk(r, /* load= */ true);
}

void luv_machine_registry_clear_notes(MachineRegistry *r)
{
        (void) walk(r, /* load= */ false);
}
