/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "lib/client.h"

static const char *const state_table[] = {
        [LUVFIO_STATE_RUNNING] = "running",   [LUVFIO_STATE_PREPARING] = "preparing",
        [LUVFIO_STATE_PREPARED] = "prepared", [LUVFIO_STATE_QUIESCING] = "quiescing",
        [LUVFIO_STATE_QUIESCED] = "quiesced", [LUVFIO_STATE_COMMITTED] = "committed",
        [LUVFIO_STATE_ABORTING] = "aborting", [LUVFIO_STATE_RESTORING] = "restoring",
        [LUVFIO_STATE_RESUMING] = "resuming", [LUVFIO_STATE_STRANDED] = "stranded",
};

static const char *const kind_table[] = {
        [LUVFIO_KIND_MEMFD] = "memfd",
        [LUVFIO_KIND_IOMMUFD] = "iommufd",
        [LUVFIO_KIND_VFIO] = "vfio",
        [LUVFIO_KIND_STATE] = "state",
};

static const char *const outcome_table[] = {
        [LUVFIO_OUTCOME_PRESERVED] = "preserved",
        [LUVFIO_OUTCOME_RESET] = "reset",
        [LUVFIO_OUTCOME_REBUILT] = "rebuilt",
        [LUVFIO_OUTCOME_RUNNING] = "running",
};

static const char *const event_type_table[] = {
        [EVENT_ATTACHED] = "attached", [EVENT_PREPARE] = "prepare", [EVENT_QUIESCE] = "quiesce",
        [EVENT_COMMIT] = "commit",     [EVENT_ABORT] = "abort",     [EVENT_RESUME] = "resume",
        [EVENT_FINISHED] = "finished",
};

/* What each error of the interface is as errno, and the parameters that tell what it is about. */
static const struct {
        const char *name;
        int error;
        const char *text;
        const char *parameter[2];
} error_table[] = {
        { "InvalidName", EINVAL, "the name breaks the rules", { "name" } },
        { "NoSuchMachine", ESRCH, "no such machine", { "machine" } },
        { "MachineExists", EEXIST, "a machine of that name is there", { "machine" } },
        { "NotOwner", EPERM, "the machine is another's", { "machine" } },
        { "WrongState", EPROTO, "not allowed in the machine's state", { "machine", "state" } },
        { "QuotaExceeded", EDQUOT, "too much of one user's", { "what", "limit" } },
        { "UnsupportedFileDescriptor",
          EOPNOTSUPP,
          "the file descriptor cannot be preserved",
          { "name", "reason" } },
        { "MissingFileDescriptor", EBADF, "luvfiod did not get exactly one file descriptor", { "name" } },
        { "DuplicateFileDescriptor",
          ENOTUNIQ,
          "the same file is held under another name",
          { "name", "other" } },
        { "NoSuchFileDescriptor", ENOENT, "no such file descriptor", { "name" } },
        { "RetrieveFailed", EIO, "the kernel did not give it back", { "name", "reason" } },
        { "Stranded", ESTALE, "the machine is stranded", { "machine", "reason" } },
};

static int table_find(const char *const *table, size_t n, const char *s)
{
        for (size_t i = 0; s && i < n; i++)
                if (streq(table[i], s))
                        return (int) i;
        return -EINVAL;
}

static const char *table_get(const char *const *table, size_t n, int i)
{
        return i >= 0 && (size_t) i < n ? table[i] : NULL;
}

_public_ const char *luvfio_state_to_string(enum luvfio_state state)
{
        return table_get(state_table, ELEMENTSOF(state_table), (int) state);
}

_public_ const char *luvfio_kind_to_string(enum luvfio_kind kind)
{
        return table_get(kind_table, ELEMENTSOF(kind_table), (int) kind);
}

_public_ const char *luvfio_outcome_to_string(enum luvfio_outcome outcome)
{
        return table_get(outcome_table, ELEMENTSOF(outcome_table), (int) outcome);
}

EventType luv_client_event_type_from_string(const char *s)
{
        return (EventType) table_find(event_type_table, ELEMENTSOF(event_type_table), s);
}

/* NULL where the key is missing, null or no string. */
const char *luv_client_get_string(sd_json_variant *object, const char *key)
{
        sd_json_variant *v = sd_json_variant_by_key(object, key);

        return v && sd_json_variant_has_type(v, SD_JSON_VARIANT_STRING) ? sd_json_variant_string(v) : NULL;
}

bool luv_client_get_unsigned(sd_json_variant *object, const char *key, uint64_t *ret)
{
        sd_json_variant *v = sd_json_variant_by_key(object, key);

        if (!v || !sd_json_variant_has_type(v, SD_JSON_VARIANT_UNSIGNED))
                return false;
        *ret = sd_json_variant_unsigned(v);
        return true;
}

int luv_client_parse_state(sd_json_variant *v, enum luvfio_state *ret)
{
        int i = table_find(state_table, ELEMENTSOF(state_table), luv_client_get_string(v, "state"));

        if (i < 0)
                return -EBADMSG;
        *ret = (enum luvfio_state) i;
        return 0;
}

void luv_client_fd_done(struct luvfio_fd *fd)
{
        free((char *) fd->name);
        free((char *) fd->device);
        *fd = (struct luvfio_fd) {};
}

int luv_client_parse_fd(sd_json_variant *v, struct luvfio_fd *ret)
{
        const char *name = luv_client_get_string(v, "name"), *device = luv_client_get_string(v, "device");
        int kind = table_find(kind_table, ELEMENTSOF(kind_table), luv_client_get_string(v, "kind"));
        int outcome = table_find(outcome_table, ELEMENTSOF(outcome_table),
                                 luv_client_get_string(v, "outcome"));
        struct luvfio_fd fd = {};

        if (!name || kind < 0 || outcome < 0 || !luv_client_get_unsigned(v, "token", &fd.token))
                return -EBADMSG;
        (void) luv_client_get_unsigned(v, "size", &fd.size);
        fd.kind = (enum luvfio_kind) kind;
        fd.outcome = (enum luvfio_outcome) outcome;
        fd.name = strdup(name);
        fd.device = device ? strdup(device) : NULL;
        if (!fd.name || (device && !fd.device)) {
                luv_client_fd_done(&fd);
                return -ENOMEM;
        }
        *ret = fd;
        return 0;
}

static void fds_free(struct luvfio_fd *fds, size_t n)
{
        for (size_t i = 0; i < n; i++)
                luv_client_fd_done(&fds[i]);
        free(fds);
}

/* The reply of Register: taken over as a whole or not at all. */
int luv_client_parse_registration(struct luvfio *l, sd_json_variant *reply)
{
        sd_json_variant *array = sd_json_variant_by_key(reply, "fileDescriptors");
        const char *s = luv_client_get_string(reply, "secret");
        _cleanup_free_ char *secret = NULL;
        struct luvfio_fd *fds;
        enum luvfio_state state;
        uint64_t generation;
        size_t n, i;
        int r;

        if (!luv_client_secret_is_valid(s) || luv_client_parse_state(reply, &state) < 0 ||
            !luv_client_get_unsigned(reply, "generation", &generation) || !array ||
            !sd_json_variant_has_type(array, SD_JSON_VARIANT_ARRAY))
                return -EBADMSG;

        secret = strdup(s);
        n = sd_json_variant_elements(array);
        fds = calloc(n + 1, sizeof(*fds));
        if (!secret || !fds) {
                free(fds);
                return -ENOMEM;
        }
        for (i = 0; i < n; i++) {
                r = luv_client_parse_fd(sd_json_variant_by_index(array, i), &fds[i]);
                if (r < 0) {
                        fds_free(fds, i);
                        return r;
                }
        }

        free(l->secret);
        l->secret = TAKE_PTR(secret);
        fds_free(l->fds, l->n_fds);
        l->fds = fds;
        l->n_fds = n;
        l->state = state;
        l->generation = generation;
        return 0;
}

/* Turns an error reply into -errno and a text that names what it is about. */
int luv_client_error(struct luvfio *l, const char *what, const char *error_id, sd_json_variant *parameters)
{
        const char *name;
        int r;

        if (streq(error_id, SD_VARLINK_ERROR_DISCONNECTED))
                return luv_client_fail(l, -ECONNRESET, "%s: luvfiod closed the connection", what);
        if (streq(error_id, SD_VARLINK_ERROR_TIMEOUT))
                return luv_client_fail(l, -ETIMEDOUT, "%s: luvfiod did not answer in time", what);
        if (streq(error_id, SD_VARLINK_ERROR_PROTOCOL))
                return luv_client_fail(l, -EBADMSG, "%s: what luvfiod sent is not varlink", what);
        if (streq(error_id, SD_VARLINK_ERROR_PERMISSION_DENIED))
                return luv_client_fail(l, -EPERM, "%s: permission denied", what);
        if (streq(error_id, SD_VARLINK_ERROR_INVALID_PARAMETER))
                return luv_client_fail(l, -EINVAL, "%s: luvfiod does not accept parameter '%s'", what,
                                       strempty(luv_client_get_string(parameters, "parameter")));

        name = strncmp(error_id, CLIENT_INTERFACE ".", STRLEN(CLIENT_INTERFACE ".")) == 0
                               ? error_id + STRLEN(CLIENT_INTERFACE ".")
                               : NULL;
        for (size_t i = 0; name && i < ELEMENTSOF(error_table); i++) {
                char detail[2][160] = {};

                if (!streq(error_table[i].name, name))
                        continue;
                for (size_t k = 0; k < ELEMENTSOF(detail); k++) {
                        const char *key = error_table[i].parameter[k],
                                   *value = key ? luv_client_get_string(parameters, key) : NULL;
                        uint64_t number;

                        if (value)
                                snprintf(detail[k], sizeof(detail[k]), "; %s: %s", key, value);
                        else if (key && luv_client_get_unsigned(parameters, key, &number))
                                snprintf(detail[k], sizeof(detail[k]), "; %s: %llu", key,
                                         (unsigned long long) number);
                }
                if (streq(name, "WrongState"))
                        (void) luv_client_parse_state(parameters, &l->state);
                return luv_client_fail(l, -error_table[i].error, "%s: %s%s%s", what, error_table[i].text,
                                       detail[0], detail[1]);
        }

        if (streq(error_id, SD_VARLINK_ERROR_SYSTEM)) {
                r = sd_varlink_error_to_errno(error_id, parameters);
                return luv_client_fail(l, r < 0 ? r : -EREMOTEIO, "%s: %s", what,
                                       strerror(r < 0 ? -r : EREMOTEIO));
        }
        return luv_client_fail(l, -EREMOTEIO, "%s: %s", what, error_id);
}

bool luv_client_secret_is_valid(const char *secret)
{
        return secret && strlen(secret) == CLIENT_SECRET_LENGTH &&
               strspn(secret, "0123456789abcdef") == CLIENT_SECRET_LENGTH;
}
