/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <stdarg.h>

#include "agents/qemu-check.h"
#include "util/string-util.h"

#define VERSION_MAJOR 10u
#define VERSION_MINOR 1u
#define BLOCKERS_MAX 64u

#define REMEDY_MEMORY                                                                                       \
        "Give the machine its memory by \"-object memory-backend-memfd,id=ram0,size=SIZE,share=on "         \
        "-machine "                                                                                         \
        "memory-backend=ram0\"."
#define REMEDY_AUX "Add \"-machine aux-ram-share=on\"."

void luv_blockers_done(Blockers *b)
{
        for (size_t i = 0; i < b->n; i++) {
                free((char *) b->items[i].message);
                free((char *) b->items[i].remedy);
        }
        free(b->items);
        *b = (Blockers) {};
}

int luv_blockers_add(Blockers *b, const char *remedy, const char *format, ...)
{
        _cleanup_free_ char *message = NULL, *copy = remedy ? strdup(remedy) : NULL;
        struct luvfio_blocker *items;
        va_list ap;

        /* Whoever has that many will find the others later. */
        if (b->n == BLOCKERS_MAX)
                return 0;
        va_start(ap, format);
        message = luv_strfv(format, ap);
        va_end(ap);
        items = reallocarray(b->items, b->n + 1, sizeof(struct luvfio_blocker));
        if (items)
                b->items = items;
        if (!items || !message || (remedy && !copy))
                return -ENOMEM;
        b->items[b->n++] =
                        (struct luvfio_blocker) { .message = TAKE_PTR(message), .remedy = TAKE_PTR(copy) };
        return 0;
}

/* Asking QEMU. */

/* 0: there is no such object or property. */
static int get_property(Qmp *q, const char *path, const char *property, uint64_t deadline,
                        sd_json_variant **ret, char **ret_reason)
{
        sd_json_variant *v = NULL;
        int r;

        r = sd_json_buildo(&v, SD_JSON_BUILD_PAIR_STRING("path", path),
                           SD_JSON_BUILD_PAIR_STRING("property", property));
        if (r >= 0)
                r = luv_qmp_call(q, "qom-get", v, deadline, ret, ret_reason);
        if (r == -EREMOTEIO) {
                if (ret_reason) {
                        free(*ret_reason);
                        *ret_reason = NULL;
                }
                return 0;
        }
        return r < 0 ? r : 1;
}

static bool is_true(sd_json_variant *v)
{
        return v && sd_json_variant_is_boolean(v) && sd_json_variant_boolean(v);
}

static const char *string_of(sd_json_variant *v)
{
        return v && sd_json_variant_is_string(v) ? sd_json_variant_string(v) : NULL;
}

int luv_qemu_machine_type(Qmp *q, uint64_t deadline, char **ret, char **ret_reason)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL;
        const char *type, *end;
        int r;

        r = get_property(q, "/machine", "type", deadline, &v, ret_reason);
        if (r < 0)
                return r;
        type = string_of(v);
        end = type ? strstr(type, "-machine") : NULL;
        if (!end || !streq(end, "-machine"))
                return luv_reason(ret_reason, -EBADMSG, "QEMU does not say which board it has");
        *ret = strndup(type, (size_t) (end - type));
        return *ret ? 0 : -ENOMEM;
}

static int check_version(Qmp *q, Blockers *b)
{
        unsigned major, minor;

        luv_qmp_get_version_numbers(q, &major, &minor);
        if (major > VERSION_MAJOR || (major == VERSION_MAJOR && minor >= VERSION_MINOR))
                return 0;
        return luv_blockers_add(
                        b, "Restart the machine with a newer QEMU.",
                        "QEMU %s cannot hand its devices to another QEMU; %u.%u is the first that can",
                        luv_qmp_get_version(q), VERSION_MAJOR, VERSION_MINOR);
}

static int check_status(Qmp *q, uint64_t deadline, Blockers *b, char **ret_reason)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL;
        const char *status;
        int r;

        r = luv_qmp_call(q, "query-status", NULL, deadline, &v, ret_reason);
        if (r < 0)
                return r;
        status = string_of(sd_json_variant_by_key(v, "status"));
        if (status && (streq(status, "running") || streq(status, "paused")))
                return 0;
        return luv_blockers_add(b, "See what QEMU waits for.", "QEMU is neither running nor paused: %s",
                                status ? status : "?");
}

static int check_aux_ram(Qmp *q, uint64_t deadline, Blockers *b, char **ret_reason)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL;
        int r;

        r = get_property(q, "/machine", "aux-ram-share", deadline, &v, ret_reason);
        if (r < 0 || is_true(v))
                return MIN(r, 0);
        return luv_blockers_add(b, REMEDY_AUX, "memory of QEMU's own, as for ROMs, is not in memfds");
}

static int check_backend(Qmp *q, const char *id, bool shared, uint64_t deadline, Blockers *b,
                         char **ret_reason)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *type = NULL, *huge = NULL;
        _cleanup_free_ char *path = luv_strf("/objects/%s", id);
        const char *name;
        int r;

        if (!path)
                return -ENOMEM;
        r = get_property(q, path, "type", deadline, &type, ret_reason);
        if (r >= 0)
                r = get_property(q, path, "hugetlb", deadline, &huge, ret_reason);
        if (r < 0)
                return r;
        name = string_of(type);
        if (!name)
                return luv_blockers_add(b, REMEDY_MEMORY, "guest memory %s is not in a memfd", id);
        /* The second is in a memfd too, if it is shared. */
        if (!streq(name, "memory-backend-memfd") && !streq(name, "memory-backend-ram"))
                return luv_blockers_add(b, REMEDY_MEMORY, "guest memory %s is of a %s and not in a memfd",
                                        id, name);
        /* What the board makes by itself is of the second kind. */
        if (!shared)
                return luv_blockers_add(b,
                                        streq(name, "memory-backend-memfd") ? "Add \",share=on\" to it."
                                                                            : REMEDY_MEMORY,
                                        "guest memory %s is not shared", id);
        if (is_true(huge))
                return luv_blockers_add(
                                b, "Take hugetlb=on from it; the kernel uses large pages by itself.",
                                "guest memory %s is in pages of hugetlbfs, which cannot be preserved", id);
        return 0;
}

static int check_memory(Qmp *q, uint64_t deadline, Blockers *b, char **ret_reason)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *list = NULL;
        int r;

        r = luv_qmp_call(q, "query-memdev", NULL, deadline, &list, ret_reason);
        if (r < 0)
                return r;
        if (!sd_json_variant_is_array(list) || sd_json_variant_elements(list) == 0)
                return luv_blockers_add(b, REMEDY_MEMORY, "guest memory is not in a memfd");
        for (size_t i = 0; i < sd_json_variant_elements(list) && r >= 0; i++) {
                sd_json_variant *x = sd_json_variant_by_index(list, i);
                const char *id = string_of(sd_json_variant_by_key(x, "id"));

                r = check_backend(q, id ? id : "?", is_true(sd_json_variant_by_key(x, "share")), deadline, b,
                                  ret_reason);
        }
        return r;
}

static int set_mode(Qmp *q, const char *mode, uint64_t deadline, char **ret_reason)
{
        sd_json_variant *v = NULL;
        int r;

        r = sd_json_buildo(&v, SD_JSON_BUILD_PAIR_STRING("mode", mode));
        return r < 0 ? r : luv_qmp_call(q, "migrate-set-parameters", v, deadline, NULL, ret_reason);
}

/* What QEMU itself has against it. */
static int check_blocked(Qmp *q, uint64_t deadline, Blockers *b, char **ret_reason)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *info = NULL;
        _cleanup_free_ char *refused = NULL;
        sd_json_variant *list;
        int r;

        r = set_mode(q, "cpr-transfer", deadline, &refused);
        if (r == -EREMOTEIO)
                return luv_blockers_add(b, "Restart the machine with a newer QEMU.", "%s",
                                        strempty(refused));
        if (r >= 0)
                r = luv_qmp_call(q, "query-migrate", NULL, deadline, &info, ret_reason);
        if (r >= 0)
                r = set_mode(q, "normal", deadline, ret_reason);
        if (r < 0)
                return r;
        list = sd_json_variant_by_key(info, "blocked-reasons");
        for (size_t i = 0; list && i < sd_json_variant_elements(list) && r >= 0; i++) {
                const char *why = string_of(sd_json_variant_by_index(list, i));

                r = luv_blockers_add(b, "Restart the machine without what QEMU names.",
                                     "QEMU itself refuses: %s", why ? why : "?");
        }
        return r;
}

/* The command line. */

/* Options whose values can be numbers of open files, of this process. */
static bool names_open_file(const char *value)
{
        static const char *const keys[] = { "fd=", "fds=", "vhostfd=", "vhostfds=" };

        if (strstr(value, "/dev/fdset/"))
                return true;
        for (const char *p = value; p; p = strchr(p, ',')) {
                p += *p == ',';
                for (size_t i = 0; i < ELEMENTSOF(keys); i++)
                        if (startswith(p, keys[i]))
                                return true;
        }
        return false;
}

static int check_argv(char *const *argv, Blockers *b)
{
        int r = 0;

        for (size_t i = 0; argv[i] && r >= 0; i++) {
                if (i > 0 && names_open_file(argv[i]))
                        r = luv_blockers_add(
                                        b, "Let QEMU open it itself.",
                                        "\"%s\" on QEMU's command line is a file that was opened by who "
                                        "started it, and means nothing to the next QEMU",
                                        argv[i]);
                else if (!luv_utf8_valid(argv[i], strlen(argv[i])))
                        r = luv_blockers_add(b, NULL, "QEMU's command line is not UTF-8 in word %zu", i);
                else if (streq(argv[i], "-daemonize") || streq(argv[i], "--daemonize"))
                        r = luv_blockers_add(b, "Take it off.", "QEMU is started with -daemonize");
        }
        return r;
}

/* Whether WORD says id=ID, in either way in which QEMU takes it. */
static bool says_id(const char *word, const char *id)
{
        size_t n = strlen(id);

        for (const char *p = strstr(word, id); p; p = strstr(p + 1, id)) {
                size_t before = (size_t) (p - word);
                const char *end = p + n;

                if ((*end == ',' || *end == 0) && before >= 3 && strncmp(p - 3, "id=", 3) == 0 &&
                    (before == 3 || p[-4] == ','))
                        return true;
                if (*end == '"' && before > 0 && p[-1] == '"') {
                        for (p -= 2; p > word && strchr(" :", *p); p--)
                                ;
                        if (p - word >= 3 && strncmp(p - 3, "\"id\"", 4) == 0)
                                return true;
                        p = end;
                }
        }
        return false;
}

/* What QEMU got by its monitor its command line does not have, and so the next QEMU would not. */
static int check_added(Qmp *q, char *const *argv, uint64_t deadline, Blockers *b, char **ret_reason)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *list = NULL;
        sd_json_variant *v = NULL;
        int r;

        r = sd_json_buildo(&v, SD_JSON_BUILD_PAIR_STRING("path", "/machine/peripheral"));
        if (r >= 0)
                r = luv_qmp_call(q, "qom-list", v, deadline, &list, ret_reason);
        /* One that does not know the question is too old anyhow. */
        if (r == -EREMOTEIO)
                return 0;
        for (size_t i = 0; r >= 0 && i < sd_json_variant_elements(list); i++) {
                sd_json_variant *x = sd_json_variant_by_index(list, i);
                const char *type = string_of(sd_json_variant_by_key(x, "type")),
                           *id = string_of(sd_json_variant_by_key(x, "name"));
                bool found = !type || !id || !startswith(type, "child<");

                for (char *const *word = argv; *word && !found; word++)
                        found = says_id(*word, id) || streq(*word, "-readconfig");
                if (!found)
                        r = luv_blockers_add(b,
                                             "Take the device out again; or put it on the command line, and "
                                             "restart the machine.",
                                             "device \"%s\" was added while the machine ran, and the next "
                                             "QEMU would not have it",
                                             id);
        }
        return r;
}

static int check_files(const QemuFiles *files, Blockers *b)
{
        int r = 0;

        for (char **x = files->legacy; x && *x && r >= 0; x++)
                r = luv_blockers_add(b,
                                     "Add \"-object iommufd,id=iommufd0\", and \"iommufd=iommufd0\" to the "
                                     "device.",
                                     "a device is used by its VFIO group (%s), which cannot be preserved",
                                     *x);
        for (char **x = files->reset; x && *x && r >= 0; x++)
                r = luv_blockers_add(b, "Take the device out of the machine, or sacrifice the machine.",
                                     "QEMU would reset device %s when it takes it over, for it has no "
                                     "function level reset",
                                     *x);
        for (char **x = files->unsupported; x && *x && r >= 0; x++)
                r = luv_blockers_add(b, REMEDY_MEMORY, "memory of QEMU cannot be preserved: %s", *x);
        return r;
}

int luv_qemu_check(Qmp *q, char *const *argv, const QemuFiles *files, uint64_t deadline, Blockers *ret)
{
        _cleanup_free_ char *reason = NULL;
        bool unanswered;
        int r;

        r = check_version(q, ret);
        if (r >= 0 && argv)
                r = check_argv(argv, ret);
        if (r >= 0)
                r = check_files(files, ret);
        if (r < 0)
                return r;
        r = check_status(q, deadline, ret, &reason);
        if (r >= 0)
                r = check_memory(q, deadline, ret, &reason);
        if (r >= 0)
                r = check_aux_ram(q, deadline, ret, &reason);
        if (r >= 0 && argv)
                r = check_added(q, argv, deadline, ret, &reason);
        if (r >= 0)
                r = check_blocked(q, deadline, ret, &reason);
        if (r >= 0 || r == -ENOMEM)
                return MIN(r, 0);
        unanswered = r == -ETIMEDOUT;
        r = luv_blockers_add(ret, "See whether QEMU hangs.", "%s", reason ? reason : strerror(-r));
        return r < 0 ? r : unanswered;
}
