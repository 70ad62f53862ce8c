/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "restore/manifest.h"
#include "util/document.h"
#include "util/json-util.h"
#include "util/log.h"
#include "util/string-util.h"

static void fd_record_done(FdRecord *f)
{
        free(f->name);
        free(f->device);
}

static void device_record_done(DeviceRecord *d)
{
        free(d->address);
        free(d->plugin);
        free(d->promise);
        free(d->plan);
}

MachineRecord *luv_machine_record_free(MachineRecord *m)
{
        if (!m)
                return NULL;
        for (size_t i = 0; i < m->n_fds; i++)
                fd_record_done(&m->fds[i]);
        for (size_t i = 0; i < m->n_devices; i++)
                device_record_done(&m->devices[i]);
        free(m->fds);
        free(m->devices);
        free(m->name);
        free(m->secret);
        free(m->unit);
        free(m->vmm);
        free(m->session);
        free(m);
        return NULL;
}

HostRecord *luv_host_record_free(HostRecord *h)
{
        if (!h)
                return NULL;
        for (size_t i = 0; i < h->n_sessions; i++) {
                free(h->sessions[i].machine);
                free(h->sessions[i].session);
        }
        free(h->sessions);
        luv_strv_free(h->units);
        luv_timeline_done(&h->timeline);
        free(h->update_id);
        free(h->from_kernel);
        free(h->to_kernel);
        free(h->boot_id);
        free(h);
        return NULL;
}

/* What the documents have; nested ones have functions of their own. */

static const JsonField phase_fields[] = {
        JSON_STRING(TimelinePhase, name, false),    JSON_STRING(TimelinePhase, machine, true),
        JSON_U64(TimelinePhase, start_usec, false), JSON_U64(TimelinePhase, end_usec, false),
        JSON_BOOL(TimelinePhase, incoming, true),   {},
};

static const JsonField anchor_fields[] = {
        JSON_U64(TimelineAnchor, boottime_usec, false),
        JSON_U64(TimelineAnchor, realtime_usec, false),
        JSON_U64(TimelineAnchor, tsc, false),
        JSON_U64(TimelineAnchor, tsc_khz, false),
        {},
};

static const JsonField timeline_fields[] = {
        JSON_U64(Timeline, started_realtime_usec, false),
        JSON_U64(Timeline, started_usec, false),
        {},
};

static const JsonField session_fields[] = {
        JSON_STRING(SessionRecord, machine, false),
        JSON_STRING(SessionRecord, session, false),
        JSON_U64(SessionRecord, serial, false),
        {},
};

static const JsonField host_fields[] = {
        JSON_STRING(HostRecord, update_id, false),
        JSON_STRING(HostRecord, from_kernel, true),
        JSON_STRING(HostRecord, to_kernel, true),
        JSON_STRING(HostRecord, boot_id, true),
        {},
};

static const JsonField fd_fields[] = {
        JSON_STRING(FdRecord, name, false),
        JSON_U64(FdRecord, token, false),
        JSON_U64(FdRecord, size, true),
        JSON_STRING(FdRecord, device, true),
        {},
};

static const JsonField device_fields[] = {
        JSON_STRING(DeviceRecord, address, false),
        JSON_STRING(DeviceRecord, plugin, false),
        JSON_STRING(DeviceRecord, promise, false),
        {},
};

static const JsonField machine_fields[] = {
        JSON_STRING(MachineRecord, name, false),      JSON_STRING(MachineRecord, secret, false),
        JSON_STRING(MachineRecord, unit, true),       JSON_STRING(MachineRecord, vmm, true),
        JSON_STRING(MachineRecord, session, false),   JSON_U64(MachineRecord, uid, false),
        JSON_U64(MachineRecord, generation, false),   JSON_U64(MachineRecord, serial, false),
        JSON_U64(MachineRecord, stopped_usec, false), {},
};

/* Checks that both records need. */

static bool text_valid(const char *s, size_t max)
{
        size_t n = strnlen(s, max + 1);

        for (size_t i = 0; i < n; i++)
                if (s[i] < 0x20 || s[i] > 0x7e)
                        return false;
        return n > 0 && n <= max;
}

static bool session_name_valid(const char *s)
{
        return text_valid(s, 63) && startswith(s, LUVFIO_SESSION_PREFIX) && !streq(s, LUVFIO_HOST_SESSION);
}

static bool serial_valid(uint64_t serial)
{
        return serial >= 1 && serial <= LUVFIO_SERIAL_MAX;
}

static int compare_strings(const void *a, const void *b)
{
        return strcmp(*(const char *const *) a, *(const char *const *) b);
}

static int compare_numbers(const void *a, const void *b)
{
        uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

        return x < y ? -1 : x > y;
}

/* Sorts; true if two are the same. */
static bool strings_repeat(const char **v, size_t n)
{
        qsort(v, n, sizeof(*v), compare_strings);
        for (size_t i = 1; i < n; i++)
                if (streq(v[i - 1], v[i]))
                        return true;
        return false;
}

static bool numbers_repeat(uint64_t *v, size_t n)
{
        qsort(v, n, sizeof(*v), compare_numbers);
        for (size_t i = 1; i < n; i++)
                if (v[i - 1] == v[i])
                        return true;
        return false;
}

/* For each element of the array KEY of O: READ, which fills the zeroed element at I of what ALLOCATED is. */
static int read_array(struct json_object *o, const char *where, const char *key, size_t max,
                      size_t element_size,
                      int (*read)(struct json_object *o, void *element, char **ret_reason),
                      void *ret_elements, size_t *ret_n, char **ret_reason)
{
        struct json_object *array;
        uint8_t *elements;
        size_t n;
        int r;

        r = luv_json_get(o, where, key, json_type_array, &array, ret_reason);
        if (r < 0)
                return r;
        n = json_object_array_length(array);
        if (n > max)
                return luv_reason(ret_reason, -EBADMSG, "%s has %zu %s, more than %zu", where, n, key, max);
        if (n == 0)
                return 0;
        elements = calloc(n, element_size);
        if (!elements)
                return -ENOMEM;
        /* The record owns them from here on, half read or not. */
        *(void **) ret_elements = elements;
        *ret_n = n;
        for (size_t i = 0; i < n; i++) {
                r = read(json_object_array_get_idx(array, i), elements + i * element_size, ret_reason);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* The host's. */

static int read_phase(struct json_object *o, void *element, char **ret_reason)
{
        TimelinePhase *p = element;
        int r;

        r = luv_json_get_fields(o, "a phase", phase_fields, p, ret_reason);
        if (r < 0)
                return r;
        if (!text_valid(p->name, 64))
                return luv_reason(ret_reason, -EBADMSG, "a phase has no valid name");
        if (p->machine && !luv_machine_name_valid(p->machine))
                return luv_reason(ret_reason, -EBADMSG, "phase \"%s\" has no valid machine name", p->name);
        return 0;
}

static int read_anchor(struct json_object *o, const char *key, TimelineAnchor *ret, char **ret_reason)
{
        struct json_object *a;
        int r;

        r = luv_json_get(o, "the timeline", key, json_type_object, &a, ret_reason);
        if (r >= 0)
                r = luv_json_get_fields(a, key, anchor_fields, ret, ret_reason);
        return r;
}

#define PHASES_MAX ((size_t) 1 << 20)

static int read_timeline(struct json_object *o, Timeline *ret, char **ret_reason)
{
        struct json_object *t;
        int r;

        r = luv_json_get(o, "the host record", "timeline", json_type_object, &t, ret_reason);
        if (r >= 0)
                r = luv_json_get_fields(t, "the timeline", timeline_fields, ret, ret_reason);
        if (r >= 0)
                r = read_anchor(t, "outgoing", &ret->outgoing, ret_reason);
        if (r >= 0)
                r = read_anchor(t, "incoming", &ret->incoming, ret_reason);
        if (r >= 0)
                r = read_array(t, "the timeline", "phases", PHASES_MAX, sizeof(TimelinePhase), read_phase,
                               &ret->phases, &ret->n_phases, ret_reason);
        return r;
}

static int read_unit(struct json_object *o, void *element, char **ret_reason)
{
        char **unit = element;
        const char *s;

        if (!json_object_is_type(o, json_type_string))
                return luv_reason(ret_reason, -EBADMSG, "a unit of the host record is no string");
        s = json_object_get_string(o);
        if (strlen(s) != (size_t) json_object_get_string_len(o) || !text_valid(s, 255))
                return luv_reason(ret_reason, -EBADMSG, "a unit of the host record has no valid name");
        *unit = strdup(s);
        return *unit ? 0 : -ENOMEM;
}

#define UNITS_MAX 65536u
#define SESSIONS_MAX ((size_t) 1 << 20)

static int read_units(struct json_object *o, char ***ret, char **ret_reason)
{
        char **units = NULL, **grown;
        size_t n = 0;
        int r;

        r = read_array(o, "the host record", "units", UNITS_MAX, sizeof(char *), read_unit, &units, &n,
                       ret_reason);
        /* Room for the end, whatever became of it: the record owns what was read. */
        grown = reallocarray(units, n + 1, sizeof(char *));
        if (!grown) {
                for (size_t i = 0; i < n; i++)
                        free(units[i]);
                free(units);
                return -ENOMEM;
        }
        grown[n] = NULL;
        *ret = grown;
        return r;
}

static int read_session(struct json_object *o, void *element, char **ret_reason)
{
        SessionRecord *s = element;
        int r;

        r = luv_json_get_fields(o, "a session of the host record", session_fields, s, ret_reason);
        if (r < 0)
                return r;
        if (!luv_machine_name_valid(s->machine))
                return luv_reason(ret_reason, -EBADMSG,
                                  "a session of the host record has no valid machine name");
        if (!session_name_valid(s->session))
                return luv_reason(ret_reason, -EBADMSG,
                                  "machine %s has no valid session name in the host record", s->machine);
        if (!serial_valid(s->serial))
                return luv_reason(ret_reason, -EBADMSG,
                                  "machine %s has no valid serial number in the host record", s->machine);
        return 0;
}

static int check_sessions(const HostRecord *h, char **ret_reason)
{
        _cleanup_free_ const char **names = calloc(h->n_sessions + 1, sizeof(char *));
        _cleanup_free_ uint64_t *serials = calloc(h->n_sessions + 1, sizeof(uint64_t));

        if (!names || !serials)
                return -ENOMEM;
        for (size_t i = 0; i < h->n_sessions; i++)
                names[i] = h->sessions[i].machine;
        if (strings_repeat(names, h->n_sessions))
                return luv_reason(ret_reason, -EBADMSG, "the host record has a machine twice");
        for (size_t i = 0; i < h->n_sessions; i++) {
                names[i] = h->sessions[i].session;
                serials[i] = h->sessions[i].serial;
        }
        if (strings_repeat(names, h->n_sessions))
                return luv_reason(ret_reason, -EBADMSG, "the host record has a session twice");
        if (numbers_repeat(serials, h->n_sessions))
                return luv_reason(ret_reason, -EBADMSG, "the host record has a serial number twice");
        return 0;
}

/* As sd-id128 writes it, or the kernel, with dashes. */
static bool boot_id_valid(const char *s)
{
        char plain[LUVFIO_ID_SIZE];
        size_t n = 0;

        for (; *s; s++) {
                if (*s == '-')
                        continue;
                if (n >= LUVFIO_ID_SIZE - 1)
                        return false;
                plain[n++] = *s;
        }
        plain[n] = 0;
        return luv_id_valid(plain);
}

static int parse_host(struct json_object *o, HostRecord **ret, char **ret_reason)
{
        static const char *const where = "the host record";
        _cleanup_(luv_host_record_freep) HostRecord *h = calloc(1, sizeof(*h));
        int r;

        if (!h)
                return -ENOMEM;
        r = luv_json_get_fields(o, where, host_fields, h, ret_reason);
        if (r < 0)
                return r;
        if (!luv_id_valid(h->update_id))
                return luv_reason(ret_reason, -EBADMSG, "the host record has no valid update id");
        if ((h->from_kernel && !text_valid(h->from_kernel, 64)) ||
            (h->to_kernel && !text_valid(h->to_kernel, 64)))
                return luv_reason(ret_reason, -EBADMSG, "the host record has no valid kernel release");
        if (h->boot_id && !boot_id_valid(h->boot_id))
                return luv_reason(ret_reason, -EBADMSG, "the host record has no valid boot id");

        r = read_timeline(o, &h->timeline, ret_reason);
        if (r >= 0)
                r = read_units(o, &h->units, ret_reason);
        if (r >= 0)
                r = read_array(o, where, "sessions", SESSIONS_MAX, sizeof(SessionRecord), read_session,
                               &h->sessions, &h->n_sessions, ret_reason);
        if (r >= 0)
                r = check_sessions(h, ret_reason);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(h);
        return 0;
}

/* A machine's. */

static int read_fd(struct json_object *o, void *element, char **ret_reason)
{
        _cleanup_free_ char *kind = NULL, *outcome = NULL;
        FdRecord *f = element;
        int r;

        r = luv_json_get_fields(o, "an fd", fd_fields, f, ret_reason);
        if (r >= 0 && !luv_fd_name_valid(f->name))
                return luv_reason(ret_reason, -EBADMSG, "an fd has no valid name");
        if (r >= 0)
                r = luv_json_get_string(o, f->name, "kind", false, &kind, ret_reason);
        if (r >= 0)
                r = luv_json_get_string(o, f->name, "outcome", false, &outcome, ret_reason);
        if (r < 0)
                return r;
        f->kind = luv_fd_kind_from_string(kind);
        if (f->kind < 0)
                return luv_reason(ret_reason, -EBADMSG, "fd \"%s\" is of the unknown kind \"%s\"", f->name,
                                  kind);
        f->outcome = luv_fd_outcome_from_string(outcome);
        if (f->outcome < 0)
                return luv_reason(ret_reason, -EBADMSG, "fd \"%s\" has the unknown outcome \"%s\"", f->name,
                                  outcome);
        if ((f->kind == FD_KIND_VFIO) != !!f->device)
                return luv_reason(ret_reason, -EBADMSG, "fd \"%s\" of kind %s %s a device", f->name, kind,
                                  f->device ? "has" : "lacks");
        if (f->device && !luv_pci_address_valid(f->device))
                return luv_reason(ret_reason, -EBADMSG, "fd \"%s\" has no valid PCI address", f->name);
        return 0;
}

static int read_device(struct json_object *o, void *element, char **ret_reason)
{
        DeviceRecord *d = element;
        int r;

        r = luv_json_get_fields(o, "a device", device_fields, d, ret_reason);
        if (r >= 0)
                r = luv_json_get_string(o, "a device", "plan", false, &d->plan, ret_reason);
        if (r < 0)
                return r;
        if (!luv_pci_address_valid(d->address))
                return luv_reason(ret_reason, -EBADMSG, "a device has no valid PCI address");
        /* It becomes the name of a socket. */
        if (!luv_machine_name_valid(d->plugin))
                return luv_reason(ret_reason, -EBADMSG, "device %s has no valid plugin name", d->address);
        if (!text_valid(d->promise, 64))
                return luv_reason(ret_reason, -EBADMSG, "device %s has no valid promise", d->address);
        if (strlen(d->plan) > LUVFIO_PLAN_MAX)
                return luv_reason(ret_reason, -EBADMSG, "device %s has a plan of more than %zu bytes",
                                  d->address, LUVFIO_PLAN_MAX);
        return 0;
}

static int check_tokens(const MachineRecord *m, uint64_t *tokens, char **ret_reason)
{
        uint64_t first = LUVFIO_MACHINE_TOKEN(m->serial) + 1, last = first + LUVFIO_FDS_MAX - 1;
        size_t n = 0;

        for (size_t i = 0; i < m->n_fds; i++) {
                const FdRecord *f = &m->fds[i];

                if (f->token == 0 && f->outcome == FD_OUTCOME_REBUILT)
                        continue;
                if (f->token < first || f->token > last)
                        return luv_reason(ret_reason, -EBADMSG,
                                          "fd \"%s\" has a token that is not machine %s's", f->name,
                                          m->name);
                tokens[n++] = f->token;
        }
        if (numbers_repeat(tokens, n))
                return luv_reason(ret_reason, -EBADMSG, "machine %s has a token twice", m->name);
        return 0;
}

static int check_machine(const MachineRecord *m, char **ret_reason)
{
        _cleanup_free_ const char **names = calloc(MAX(m->n_fds, m->n_devices) + 1, sizeof(char *));
        _cleanup_free_ uint64_t *tokens = calloc(m->n_fds + 1, sizeof(uint64_t));

        if (!names || !tokens)
                return -ENOMEM;
        for (size_t i = 0; i < m->n_fds; i++)
                names[i] = m->fds[i].name;
        if (strings_repeat(names, m->n_fds))
                return luv_reason(ret_reason, -EBADMSG, "machine %s has an fd name twice", m->name);
        for (size_t i = 0; i < m->n_devices; i++)
                names[i] = m->devices[i].address;
        if (strings_repeat(names, m->n_devices))
                return luv_reason(ret_reason, -EBADMSG, "machine %s has a device twice", m->name);
        for (size_t i = 0; i < m->n_fds; i++) {
                const char *const *device = (const char *const *) &m->fds[i].device;

                /* They are sorted now. An unplanned device would never be bound again. */
                if (*device && !bsearch(device, names, m->n_devices, sizeof(char *), compare_strings))
                        return luv_reason(ret_reason, -EBADMSG,
                                          "fd \"%s\" is of device %s, which machine %s does not have",
                                          m->fds[i].name, *device, m->name);
        }
        return check_tokens(m, tokens, ret_reason);
}

static int parse_machine(struct json_object *o, MachineRecord **ret, char **ret_reason)
{
        static const char *const where = "the machine record";
        _cleanup_(luv_machine_record_freep) MachineRecord *m = calloc(1, sizeof(*m));
        int r;

        if (!m)
                return -ENOMEM;
        r = luv_json_get_fields(o, where, machine_fields, m, ret_reason);
        if (r < 0)
                return r;
        if (!luv_machine_name_valid(m->name))
                return luv_reason(ret_reason, -EBADMSG, "the machine record has no valid name");
        if (!luv_id_valid(m->secret))
                return luv_reason(ret_reason, -EBADMSG, "the record of machine %s has no valid secret",
                                  m->name);
        if (m->unit && !text_valid(m->unit, 255))
                return luv_reason(ret_reason, -EBADMSG, "the record of machine %s has no valid unit",
                                  m->name);
        if (!session_name_valid(m->session))
                return luv_reason(ret_reason, -EBADMSG, "the record of machine %s has no valid session",
                                  m->name);
        if (m->uid >= UINT32_MAX)
                return luv_reason(ret_reason, -EBADMSG, "the record of machine %s has no valid uid",
                                  m->name);
        if (!serial_valid(m->serial))
                return luv_reason(ret_reason, -EBADMSG,
                                  "the record of machine %s has no valid serial number", m->name);

        r = read_array(o, where, "fds", LUVFIO_FDS_MAX, sizeof(FdRecord), read_fd, &m->fds, &m->n_fds,
                       ret_reason);
        if (r >= 0)
                r = read_array(o, where, "devices", LUVFIO_FDS_MAX, sizeof(DeviceRecord), read_device,
                               &m->devices, &m->n_devices, ret_reason);
        if (r >= 0)
                r = check_machine(m, ret_reason);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(m);
        return 0;
}

int luv_host_record_read(int fd, HostRecord **ret, char **ret_reason)
{
        _cleanup_json_ struct json_object *o = NULL;
        int r;

        r = luv_document_read(fd, DOCUMENT_HOST, &o, ret_reason);
        if (r < 0)
                return r;
        return parse_host(o, ret, ret_reason);
}

int luv_machine_record_read(int fd, MachineRecord **ret, char **ret_reason)
{
        _cleanup_json_ struct json_object *o = NULL;
        int r;

        r = luv_document_read(fd, DOCUMENT_MACHINE, &o, ret_reason);
        if (r < 0)
                return r;
        return parse_machine(o, ret, ret_reason);
}

/* Writing. */

static int write_anchor(struct json_object *o, const char *key, const TimelineAnchor *a)
{
        struct json_object *member;
        int r;

        r = luv_json_add_object(o, key, &member);
        if (r >= 0)
                r = luv_json_add_fields(member, anchor_fields, a);
        return r;
}

static int write_timeline(struct json_object *o, const Timeline *t)
{
        struct json_object *member = NULL, *phases = NULL, *phase;
        int r;

        r = luv_json_add_object(o, "timeline", &member);
        if (r >= 0)
                r = luv_json_add_fields(member, timeline_fields, t);
        if (r >= 0)
                r = write_anchor(member, "outgoing", &t->outgoing);
        if (r >= 0)
                r = write_anchor(member, "incoming", &t->incoming);
        if (r >= 0)
                r = luv_json_add_array(member, "phases", &phases);
        for (size_t i = 0; i < t->n_phases && r >= 0; i++) {
                r = luv_json_append_object(phases, &phase);
                if (r >= 0)
                        r = luv_json_add_fields(phase, phase_fields, t->phases + i);
        }
        return r;
}

static int write_host(struct json_object *o, const HostRecord *h)
{
        struct json_object *units = NULL, *sessions = NULL, *session;
        int r;

        r = luv_json_add_fields(o, host_fields, h);
        if (r >= 0)
                r = write_timeline(o, &h->timeline);
        if (r >= 0)
                r = luv_json_add_array(o, "units", &units);
        for (char *const *u = h->units; u && *u && r >= 0; u++)
                r = luv_json_append(units, json_object_new_string(*u));
        if (r >= 0)
                r = luv_json_add_array(o, "sessions", &sessions);
        for (size_t i = 0; i < h->n_sessions && r >= 0; i++) {
                r = luv_json_append_object(sessions, &session);
                if (r >= 0)
                        r = luv_json_add_fields(session, session_fields, h->sessions + i);
        }
        return r;
}

static int write_fd(struct json_object *array, const FdRecord *f)
{
        struct json_object *o;
        int r;

        r = luv_json_append_object(array, &o);
        if (r >= 0)
                r = luv_json_add_fields(o, fd_fields, f);
        if (r >= 0)
                r = luv_json_add_string(o, "kind", luv_fd_kind_to_string(f->kind));
        if (r >= 0)
                r = luv_json_add_string(o, "outcome", luv_fd_outcome_to_string(f->outcome));
        return r;
}

static int write_device(struct json_object *array, const DeviceRecord *d)
{
        struct json_object *o;
        int r;

        r = luv_json_append_object(array, &o);
        if (r >= 0)
                r = luv_json_add_fields(o, device_fields, d);
        /* None is an empty one. */
        if (r >= 0)
                r = luv_json_add_string(o, "plan", strempty(d->plan));
        return r;
}

static int write_machine(struct json_object *o, const MachineRecord *m)
{
        struct json_object *fds = NULL, *devices = NULL;
        int r;

        r = luv_json_add_fields(o, machine_fields, m);
        if (r >= 0)
                r = luv_json_add_array(o, "fds", &fds);
        for (size_t i = 0; i < m->n_fds && r >= 0; i++)
                r = write_fd(fds, &m->fds[i]);
        if (r >= 0)
                r = luv_json_add_array(o, "devices", &devices);
        for (size_t i = 0; i < m->n_devices && r >= 0; i++)
                r = write_device(devices, &m->devices[i]);
        return r;
}

/* What our own reader would refuse is our own mistake, not damage. */
static int written(int r, const char *reason)
{
        if (r != -EBADMSG && r != -EPROTONOSUPPORT && r != -EINVAL)
                return r;
        luv_log(LOG_ERR, "The record is not written, because it could not be read: %s", strempty(reason));
        return -EINVAL;
}

int luv_host_record_write(const HostRecord *h, int *ret_fd)
{
        _cleanup_(luv_host_record_freep) HostRecord *back = NULL;
        _cleanup_json_ struct json_object *o = json_object_new_object();
        _cleanup_free_ char *reason = NULL;
        _cleanup_close_ int fd = -EBADF;
        int r;

        if (!o)
                return -ENOMEM;
        r = write_host(o, h);
        if (r >= 0)
                r = luv_document_write(DOCUMENT_HOST, o, &fd, &reason);
        if (r >= 0)
                r = luv_host_record_read(fd, &back, &reason);
        if (r < 0)
                return written(r, reason);
        *ret_fd = TAKE_FD(fd);
        return 0;
}

int luv_machine_record_write(const MachineRecord *m, int *ret_fd)
{
        _cleanup_(luv_machine_record_freep) MachineRecord *back = NULL;
        _cleanup_json_ struct json_object *o = json_object_new_object();
        _cleanup_free_ char *reason = NULL;
        _cleanup_close_ int fd = -EBADF;
        int r;

        if (!o)
                return -ENOMEM;
        r = write_machine(o, m);
        if (r >= 0)
                r = luv_document_write(DOCUMENT_MACHINE, o, &fd, &reason);
        if (r >= 0)
                r = luv_machine_record_read(fd, &back, &reason);
        if (r < 0)
                return written(r, reason);
        *ret_fd = TAKE_FD(fd);
        return 0;
}
