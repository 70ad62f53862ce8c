/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <json-c/json.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "luvfio/luvfio.h"
#include "vmm.h"

#define STATE_VERSION 1
#define STATE_SIZE_MAX ((off_t) 64 << 10)

int log_error(int r, const char *format, ...)
{
        char text[512];
        va_list ap;

        errno = r < 0 ? -r : r;
        va_start(ap, format);
        vsnprintf(text, sizeof(text), format, ap);
        va_end(ap);
        fprintf(stderr, "%s\n", text);
        return r;
}

void log_info(const char *format, ...)
{
        char text[512];
        va_list ap;

        va_start(ap, format);
        vsnprintf(text, sizeof(text), format, ap);
        va_end(ap);
        fprintf(stderr, "%s\n", text);
}

static struct json_object *json_hex(uint64_t value)
{
        char text[17];

        snprintf(text, sizeof(text), "%016llx", (unsigned long long) value);
        return json_object_new_string(text);
}

/* Written with vCPUs stopped, into a memfd of just that size. */
int state_write(const State *state, int *ret_fd)
{
        struct json_object *document = json_object_new_object(), *devices = json_object_new_array();
        _cleanup_close_ int fd = memfd_create("vmm-state", MFD_CLOEXEC);
        const char *text;
        size_t n;
        int r = 0;

        json_object_object_add(document, "version", json_object_new_int(STATE_VERSION));
        json_object_object_add(document, "ramSize", json_object_new_int64((int64_t) state->ram_size));
        json_object_object_add(document, "steps", json_object_new_int64((int64_t) state->steps));
        json_object_object_add(document, "ioas", json_object_new_int64(state->ioas));
        if (state->has_checksum)
                json_object_object_add(document, "checksum", json_hex(state->checksum));
        for (size_t i = 0; i < state->n_devices; i++) {
                struct json_object *device = json_object_new_object();

                json_object_object_add(device, "bdf", json_object_new_string(state->devices[i].bdf));
                json_object_object_add(device, "rounds",
                                       json_object_new_int64((int64_t) state->devices[i].rounds));
                json_object_object_add(device, "latched",
                                       json_object_new_boolean(state->devices[i].latched));
                json_object_array_add(devices, device);
        }
        json_object_object_add(document, "devices", devices);

        text = json_object_to_json_string_length(document, JSON_C_TO_STRING_PLAIN, &n);
        errno = 0;
        if (fd < 0 || !text || write(fd, text, n) != (ssize_t) n)
                r = log_error(negative_errno(), "state document: %m");
        else
                *ret_fd = TAKE_FD(fd);
        json_object_put(document);
        return r;
}

static int64_t get_int(struct json_object *object, const char *key)
{
        struct json_object *v;

        return json_object_object_get_ex(object, key, &v) ? json_object_get_int64(v) : -1;
}

static const char *get_string(struct json_object *object, const char *key)
{
        struct json_object *v;

        return json_object_object_get_ex(object, key, &v) ? json_object_get_string(v) : NULL;
}

int state_read(int fd, State *ret)
{
        _cleanup_free_ char *text = NULL;
        struct json_object *document, *devices = NULL;
        const char *checksum;
        State state = {};
        struct stat st;
        int r = -EBADMSG;

        if (fstat(fd, &st) < 0)
                return log_error(negative_errno(), "state document: fstat: %m");
        if (st.st_size <= 0 || st.st_size > STATE_SIZE_MAX)
                return log_error(-EBADMSG, "state document: %lld bytes", (long long) st.st_size);
        text = calloc(1, (size_t) st.st_size + 1);
        if (!text || pread(fd, text, (size_t) st.st_size, 0) != st.st_size)
                return log_error(-EIO, "state document cannot be read");
        document = json_tokener_parse(text);
        if (!document || get_int(document, "version") != STATE_VERSION)
                goto out;

        state.ram_size = (uint64_t) get_int(document, "ramSize");
        state.steps = (uint64_t) get_int(document, "steps");
        state.ioas = (uint32_t) get_int(document, "ioas");
        checksum = get_string(document, "checksum");
        if (checksum) {
                state.has_checksum = true;
                state.checksum = strtoull(checksum, NULL, 16);
        }
        if (!json_object_object_get_ex(document, "devices", &devices) ||
            !json_object_is_type(devices, json_type_array) ||
            json_object_array_length(devices) > DEVICES_MAX)
                goto out;
        for (; state.n_devices < json_object_array_length(devices); state.n_devices++) {
                struct json_object *device = json_object_array_get_idx(devices, state.n_devices);
                const char *bdf = get_string(device, "bdf");

                if (!bdf)
                        goto out;
                snprintf(state.devices[state.n_devices].bdf, sizeof(state.devices->bdf), "%s", bdf);
                state.devices[state.n_devices].rounds = (uint64_t) get_int(device, "rounds");
                state.devices[state.n_devices].latched = get_int(device, "latched") > 0;
        }
        *ret = state;
        r = 0;
out:
        json_object_put(document);
        if (r < 0)
                return log_error(r, "state document is not one of this VMM: %s", text);
        return 0;
}

void report(const char *path, const char *event, const char *machine, const Guest *g,
            struct json_object *more)
{
        struct json_object *line = json_object_new_object(), *devices = json_object_new_array();
        _cleanup_fclose_ FILE *f = NULL;
        const char *text;

        json_object_object_add(line, "event", json_object_new_string(event));
        json_object_object_add(line, "machine", json_object_new_string(machine));
        json_object_object_add(line, "bootTimeUSec", json_object_new_int64((int64_t) luvfio_now()));
        if (g->ram) {
                json_object_object_add(line, "running", json_object_new_boolean(g->running));
                json_object_object_add(line, "ramSize", json_object_new_int64((int64_t) g->size));
                json_object_object_add(line, "steps",
                                       json_object_new_int64((int64_t) guest_header(g)->steps));
                json_object_object_add(line, "guestErrors",
                                       json_object_new_int64((int64_t) guest_header(g)->errors));
        }
        for (size_t i = 0; i < g->n_devices; i++) {
                const Device *d = &g->devices[i];
                struct json_object *device = json_object_new_object();

                json_object_object_add(device, "bdf", json_object_new_string(d->bdf));
                json_object_object_add(device, "driver",
                                       json_object_new_string(d->driver ? d->driver->name : ""));
                if (d->area) {
                        json_object_object_add(device, "rounds",
                                               json_object_new_int64((int64_t) d->area->rounds));
                        json_object_object_add(device, "interrupts",
                                               json_object_new_int64((int64_t) d->area->interrupts));
                        json_object_object_add(device, "heard", json_object_new_int64(d->heard));
                        json_object_object_add(device, "told", json_object_new_int64(d->told));
                }
                json_object_array_add(devices, device);
        }
        json_object_object_add(line, "devices", devices);
        if (more) {
                json_object_object_foreach(more, key, value)
                                json_object_object_add(line, key, json_object_get(value));
                json_object_put(more);
        }

        text = json_object_to_json_string_ext(line, JSON_C_TO_STRING_PLAIN);
        printf("%s\n", text);
        (void) fflush(stdout);
        if (path) {
                f = fopen(path, "ae");
                if (!f || fprintf(f, "%s\n", text) < 0 || fflush(f) != 0)
                        log_error(negative_errno(), "report %s cannot be written: %m", path);
        }
        json_object_put(line);
}
