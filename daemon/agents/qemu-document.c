/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "agents/qemu-document.h"
#include "util/document.h"
#include "util/json-util.h"
#include "util/string-util.h"

#define WHERE "QEMU record"
#define ARGV_MAX 65536u

static void preserved_done(QemuPreserved *p)
{
        free(p->name);
        free(p->file);
}

static void eventfd_done(QemuEventfd *e)
{
        free(e->name);
        free(e->device);
}

static void device_done(QemuDevice *x)
{
        free(x->name);
        free(x->address);
}

QemuDocument *luv_qemu_document_free(QemuDocument *d)
{
        if (!d)
                return NULL;
        for (size_t i = 0; i < d->n_preserved; i++)
                preserved_done(&d->preserved[i]);
        for (size_t i = 0; i < d->n_eventfds; i++)
                eventfd_done(&d->eventfds[i]);
        for (size_t i = 0; i < d->n_devices; i++)
                device_done(&d->devices[i]);
        free(d->preserved);
        free(d->eventfds);
        free(d->devices);
        luv_strv_free(d->argv);
        free(d->version);
        free(d->machine_type);
        free(d->cwd);
        free(d->xml);
        free(d);
        return NULL;
}

#define GROW(array, n)                                                                                      \
        ({                                                                                                  \
                __typeof__(array) _grown = reallocarray((array), (n) + 1, sizeof(*(array)));                \
                if (_grown)                                                                                 \
                        (array) = _grown;                                                                   \
                _grown != NULL;                                                                             \
        })

int luv_qemu_document_add_preserved(QemuDocument *d, const QemuPreserved *p)
{
        QemuPreserved copy = { .id = p->id };

        if (luv_free_and_strdup(&copy.name, p->name) < 0 || luv_free_and_strdup(&copy.file, p->file) < 0 ||
            !GROW(d->preserved, d->n_preserved)) {
                preserved_done(&copy);
                return -ENOMEM;
        }
        d->preserved[d->n_preserved++] = copy;
        return 0;
}

int luv_qemu_document_add_eventfd(QemuDocument *d, const QemuEventfd *e)
{
        QemuEventfd copy = *e;

        copy.name = copy.device = NULL;
        if (luv_free_and_strdup(&copy.name, e->name) < 0 ||
            luv_free_and_strdup(&copy.device, e->device) < 0 || !GROW(d->eventfds, d->n_eventfds)) {
                eventfd_done(&copy);
                return -ENOMEM;
        }
        d->eventfds[d->n_eventfds++] = copy;
        return 0;
}

QemuEventfd *luv_qemu_document_find_eventfd(const QemuDocument *d, const char *name, int32_t id)
{
        for (size_t i = 0; i < d->n_eventfds; i++)
                if (d->eventfds[i].id == id && streq(d->eventfds[i].name, name))
                        return &d->eventfds[i];
        return NULL;
}

int luv_qemu_document_set_eventfd(QemuDocument *d, const QemuEventfd *e)
{
        QemuEventfd *old = luv_qemu_document_find_eventfd(d, e->name, e->id);
        int r;

        if (!old)
                return luv_qemu_document_add_eventfd(d, e);
        r = luv_free_and_strdup(&old->device, e->device);
        if (r < 0)
                return r;
        old->initial = e->initial;
        old->irq = e->irq;
        old->vector = e->vector;
        return 0;
}

int luv_qemu_document_add_device(QemuDocument *d, const QemuDevice *x)
{
        QemuDevice copy = *x;

        copy.name = copy.address = NULL;
        if (luv_free_and_strdup(&copy.name, x->name) < 0 ||
            luv_free_and_strdup(&copy.address, x->address) < 0 || !GROW(d->devices, d->n_devices)) {
                device_done(&copy);
                return -ENOMEM;
        }
        d->devices[d->n_devices++] = copy;
        return 0;
}

/* Writing. */

static const JsonField document_fields[] = {
        JSON_STRING(QemuDocument, version, false),
        JSON_STRING(QemuDocument, machine_type, false),
        JSON_STRING(QemuDocument, cwd, true),
        JSON_STRING(QemuDocument, xml, true),
        JSON_U64(QemuDocument, uid, true),
        JSON_U64(QemuDocument, gid, true),
        JSON_BOOL(QemuDocument, running, true),
        JSON_U64(QemuDocument, stream_size, false),
        {},
};

static const JsonField device_fields[] = {
        JSON_STRING(QemuDevice, name, false), JSON_STRING(QemuDevice, address, false),
        JSON_U64(QemuDevice, devid, false),   JSON_U64(QemuDevice, ioas, false),
        JSON_U64(QemuDevice, hwpt, false),    {},
};

static int add_argv(struct json_object *o, char *const *argv)
{
        struct json_object *array;
        int r;

        r = luv_json_add_array(o, "argv", &array);
        for (size_t i = 0; argv[i] && r >= 0; i++)
                r = luv_json_append(array, json_object_new_string(argv[i]));
        return r;
}

static int add_eventfd(struct json_object *array, const QemuEventfd *e)
{
        struct json_object *o;
        int r;

        r = luv_json_append_object(array, &o);
        if (r >= 0)
                r = luv_json_add_string(o, "name", e->name);
        if (r >= 0)
                r = luv_json_add_u64(o, "id", (uint64_t) e->id);
        if (r >= 0)
                r = luv_json_add_u64(o, "initial", e->initial);
        if (r < 0 || !e->device)
                return r;
        r = luv_json_add_string(o, "device", e->device);
        if (r >= 0)
                r = luv_json_add_string(o, "interrupt", luv_vfio_irq_to_string(e->irq));
        if (r >= 0)
                r = luv_json_add_u64(o, "vector", e->vector);
        return r;
}

static int to_json(const QemuDocument *d, struct json_object **ret)
{
        _cleanup_json_ struct json_object *o = json_object_new_object();
        struct json_object *array, *x;
        int r;

        if (!o)
                return -ENOMEM;
        r = luv_json_add_fields(o, document_fields, d);
        if (r >= 0)
                r = add_argv(o, d->argv);
        if (r >= 0)
                r = luv_json_add_array(o, "files", &array);
        for (size_t i = 0; i < d->n_preserved && r >= 0; i++) {
                r = luv_json_append_object(array, &x);
                if (r >= 0)
                        r = luv_json_add_string(x, "name", d->preserved[i].name);
                if (r >= 0)
                        r = luv_json_add_u64(x, "id", (uint64_t) d->preserved[i].id);
                if (r >= 0)
                        r = luv_json_add_string(x, "file", d->preserved[i].file);
        }
        if (r >= 0)
                r = luv_json_add_array(o, "eventfds", &array);
        for (size_t i = 0; i < d->n_eventfds && r >= 0; i++)
                r = add_eventfd(array, &d->eventfds[i]);
        if (r >= 0)
                r = luv_json_add_array(o, "devices", &array);
        for (size_t i = 0; i < d->n_devices && r >= 0; i++) {
                r = luv_json_append_object(array, &x);
                if (r >= 0)
                        r = luv_json_add_fields(x, device_fields, &d->devices[i]);
        }
        if (r >= 0)
                *ret = TAKE_PTR(o);
        return r;
}

int luv_qemu_document_write(const QemuDocument *d, int *ret_fd, char **ret_reason)
{
        _cleanup_(luv_qemu_document_freep) QemuDocument *again = NULL;
        _cleanup_json_ struct json_object *o = NULL;
        _cleanup_close_ int fd = -EBADF;
        int r;

        r = to_json(d, &o);
        if (r >= 0)
                r = luv_document_write(DOCUMENT_QEMU, o, &fd, ret_reason);
        if (r < 0)
                return r;
        r = luv_qemu_document_read(fd, &again, ret_reason);
        if (r < 0)
                return r == -ENOMEM ? r : -EINVAL;
        *ret_fd = TAKE_FD(fd);
        return 0;
}

/* Reading. */

static int bad(char **ret_reason, const char *what, const char *name)
{
        return luv_reason(ret_reason, -EBADMSG, WHERE ": %s of \"%s\"", what, name);
}

/* Ids are numbers of QEMU's that are not negative. */
static int get_id(struct json_object *o, const char *where, int32_t *ret, char **ret_reason)
{
        uint64_t v;
        int r;

        r = luv_json_get_u64(o, where, "id", false, &v, ret_reason);
        if (r < 0)
                return r;
        if (v > INT32_MAX)
                return luv_reason(ret_reason, -EBADMSG, "%s: id is out of range", where);
        *ret = (int32_t) v;
        return 0;
}

static int get_argv(struct json_object *o, QemuDocument *d, char **ret_reason)
{
        struct json_object *array;
        size_t n;
        int r;

        r = luv_json_get(o, WHERE, "argv", json_type_array, &array, ret_reason);
        if (r < 0)
                return r;
        n = json_object_array_length(array);
        if (n == 0 || n > ARGV_MAX)
                return luv_reason(ret_reason, -EBADMSG, WHERE ": a command line of %zu words", n);
        for (size_t i = 0; i < n && r >= 0; i++) {
                struct json_object *s = json_object_array_get_idx(array, i);

                if (!json_object_is_type(s, json_type_string) ||
                    strlen(json_object_get_string(s)) != (size_t) json_object_get_string_len(s))
                        return luv_reason(ret_reason, -EBADMSG,
                                          WHERE ": argv holds something else than words");
                r = luv_strv_extend(&d->argv, json_object_get_string(s));
        }
        return r;
}

static int get_preserved(struct json_object *o, QemuDocument *d, char **ret_reason)
{
        QemuPreserved p = {};
        int r;

        r = luv_json_get_string(o, "file", "name", false, &p.name, ret_reason);
        if (r >= 0)
                r = luv_json_get_string(o, "file", "file", false, &p.file, ret_reason);
        if (r >= 0)
                r = get_id(o, "file", &p.id, ret_reason);
        if (r >= 0 && !luv_fd_name_valid(p.file))
                r = bad(ret_reason, "no valid file", p.name);
        if (r >= 0)
                r = luv_qemu_document_add_preserved(d, &p);
        preserved_done(&p);
        return r;
}

static int get_eventfd(struct json_object *o, QemuDocument *d, char **ret_reason)
{
        _cleanup_free_ char *irq = NULL;
        QemuEventfd e = { .irq = _VFIO_IRQ_INVALID };
        int r;

        r = luv_json_get_string(o, "eventfd", "name", false, &e.name, ret_reason);
        if (r >= 0)
                r = get_id(o, "eventfd", &e.id, ret_reason);
        if (r >= 0)
                r = luv_json_get_u64(o, "eventfd", "initial", false, &e.initial, ret_reason);
        if (r >= 0)
                r = luv_json_get_string(o, "eventfd", "device", true, &e.device, ret_reason);
        if (r >= 0)
                r = luv_json_get_string(o, "eventfd", "interrupt", true, &irq, ret_reason);
        if (r >= 0)
                r = luv_json_get_u64(o, "eventfd", "vector", true, &e.vector, ret_reason);
        if (r >= 0) {
                if (irq)
                        e.irq = luv_vfio_irq_from_string(irq);
                if (e.initial > 1 || e.vector >= VFIO_VECTORS_MAX || (e.device != NULL) != (e.irq >= 0))
                        r = bad(ret_reason, "no valid interrupt", e.name);
        }
        if (r >= 0)
                r = luv_qemu_document_add_eventfd(d, &e);
        eventfd_done(&e);
        return r;
}

static int get_device(struct json_object *o, QemuDocument *d, char **ret_reason)
{
        QemuDevice x = {};
        int r;

        r = luv_json_get_fields(o, "device", device_fields, &x, ret_reason);
        if (r >= 0 && (!luv_pci_address_valid(x.address) || x.devid > INT32_MAX || x.ioas > UINT32_MAX ||
                       x.hwpt > UINT32_MAX))
                r = bad(ret_reason, "no valid device", x.name);
        if (r >= 0)
                r = luv_qemu_document_add_device(d, &x);
        device_done(&x);
        return r;
}

static int get_array(struct json_object *o, const char *key, size_t max,
                     int (*element)(struct json_object *o, QemuDocument *d, char **ret_reason),
                     QemuDocument *d, char **ret_reason)
{
        struct json_object *array;
        int r;

        r = luv_json_get(o, WHERE, key, json_type_array, &array, ret_reason);
        if (r >= 0 && json_object_array_length(array) > max)
                return luv_reason(ret_reason, -EBADMSG, WHERE ": too many %s", key);
        for (size_t i = 0; r >= 0 && i < json_object_array_length(array); i++) {
                struct json_object *x = json_object_array_get_idx(array, i);

                if (!json_object_is_type(x, json_type_object))
                        return luv_reason(ret_reason, -EBADMSG,
                                          WHERE ": %s holds something else than objects", key);
                r = element(x, d, ret_reason);
        }
        return r;
}

static bool has_file(const QemuDocument *d, const char *name)
{
        for (size_t i = 0; i < d->n_preserved; i++)
                if (d->preserved[i].id == 0 && streq(d->preserved[i].name, name))
                        return true;
        return false;
}

/* What refers to something refers to something that is there. */
static int check(const QemuDocument *d, char **ret_reason)
{
        for (size_t i = 0; i < d->n_devices; i++)
                if (!has_file(d, d->devices[i].name))
                        return bad(ret_reason, "no file", d->devices[i].name);
        for (size_t i = 0; i < d->n_eventfds; i++) {
                const char *device = d->eventfds[i].device;
                bool found = !device;

                for (size_t k = 0; k < d->n_devices && !found; k++)
                        found = streq(d->devices[k].name, device);
                if (!found)
                        return bad(ret_reason, "no device", d->eventfds[i].name);
        }
        return 0;
}

int luv_qemu_document_read(int fd, QemuDocument **ret, char **ret_reason)
{
        _cleanup_(luv_qemu_document_freep) QemuDocument *d = calloc(1, sizeof(QemuDocument));
        _cleanup_json_ struct json_object *o = NULL;
        int r;

        if (!d)
                return -ENOMEM;
        r = luv_document_read(fd, DOCUMENT_QEMU, &o, ret_reason);
        if (r >= 0)
                r = luv_json_get_fields(o, WHERE, document_fields, d, ret_reason);
        if (r >= 0)
                r = get_argv(o, d, ret_reason);
        if (r >= 0)
                r = get_array(o, "files", CPR_FDS_MAX, get_preserved, d, ret_reason);
        if (r >= 0)
                r = get_array(o, "eventfds", CPR_FDS_MAX, get_eventfd, d, ret_reason);
        if (r >= 0)
                r = get_array(o, "devices", CPR_DEVICES_MAX, get_device, d, ret_reason);
        if (r >= 0)
                r = check(d, ret_reason);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(d);
        return 0;
}
