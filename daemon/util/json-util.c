/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "util/json-util.h"
#include "util/string-util.h"

static char *put_escape(char *to, uint32_t unit)
{
        return to + snprintf(to, 7, "\\u%04x", unit);
}

/*
 * json-c 0.17 and 0.18, when strict, take every byte of a character that is not ASCII for a control
 * character. So these become escapes first. DATA is valid UTF-8.
 */
static int escape_unicode(const char *data, size_t size, char **ret, size_t *ret_size)
{
        _cleanup_free_ char *escaped = NULL;
        bool backslash = false;
        size_t extra = 0;
        char *to;

        /* At most six bytes for the two of a character that has the fewest, twelve for one of four. */
        for (size_t i = 0; i < size; i++)
                extra += (uint8_t) data[i] >= 0x80 ? 2 : 0;
        if (extra == 0) {
                *ret = NULL;
                return 0;
        }
        escaped = malloc(size + extra + 1);
        if (!escaped)
                return -ENOMEM;
        to = escaped;
        for (size_t i = 0; i < size;) {
                uint8_t c = (uint8_t) data[i];
                uint32_t code;
                size_t n;

                if (c < 0x80) {
                        backslash = c == '\\' && !backslash;
                        *to++ = data[i++];
                        continue;
                }
                /* It would escape our own backslash. */
                if (backslash)
                        return -EBADMSG;
                n = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
                code = c & (0x7fu >> n);
                for (size_t k = 1; k < n; k++)
                        code = code << 6 | ((uint8_t) data[i + k] & 0x3f);
                i += n;
                if (code >= 0x10000) {
                        code -= 0x10000;
                        to = put_escape(to, 0xd800 + (code >> 10));
                        code = 0xdc00 + (code & 0x3ff);
                }
                to = put_escape(to, code);
        }
        *ret_size = (size_t) (to - escaped);
        *ret = TAKE_PTR(escaped);
        return 0;
}

int luv_json_parse(const char *data, size_t size, struct json_object **ret, char **ret_reason)
{
        _cleanup_json_ struct json_object *o = NULL;
        _cleanup_free_ char *escaped = NULL;
        struct json_tokener *tokener;
        enum json_tokener_error error;
        size_t end;
        int r;

        if (size > LUVFIO_JSON_SIZE_MAX)
                return luv_reason(ret_reason, -EBADMSG,
                                  "the JSON has %zu bytes, more than the %zu that are read", size,
                                  LUVFIO_JSON_SIZE_MAX);
        /* json-c's own check of UTF-8 lets surrogates pass. */
        if (!luv_utf8_valid(data, size))
                return luv_reason(ret_reason, -EBADMSG, "the JSON is not valid UTF-8");

        r = escape_unicode(data, size, &escaped, &size);
        if (r == -EBADMSG)
                return luv_reason(ret_reason, -EBADMSG, "the JSON has an escape that is none");
        if (r < 0)
                return r;
        if (escaped)
                data = escaped;

        tokener = json_tokener_new_ex(LUVFIO_JSON_DEPTH_MAX);
        if (!tokener)
                return -ENOMEM;
        json_tokener_set_flags(tokener, JSON_TOKENER_STRICT);
        o = json_tokener_parse_ex(tokener, data, (int) size);
        error = json_tokener_get_error(tokener);
        end = json_tokener_get_parse_end(tokener);
        json_tokener_free(tokener);

        if (error == json_tokener_continue)
                return luv_reason(ret_reason, -EBADMSG, "the JSON ends before its end");
        if (error != json_tokener_success)
                return luv_reason(ret_reason, -EBADMSG, "the JSON is wrong at byte %zu: %s", end,
                                  json_tokener_error_desc(error));
        if (end != size)
                return luv_reason(ret_reason, -EBADMSG, "something follows the JSON at byte %zu", end);
        *ret = TAKE_PTR(o);
        return 0;
}

/* Absent and null are one. */
static int get(struct json_object *o, const char *where, const char *key, enum json_type type, bool nullable,
               struct json_object **ret, char **ret_reason)
{
        struct json_object *v;

        if (!json_object_is_type(o, json_type_object))
                return luv_reason(ret_reason, -EBADMSG, "%s is no object", where);
        if (!json_object_object_get_ex(o, key, &v) || !v) {
                if (!nullable)
                        return luv_reason(ret_reason, -EBADMSG, "%s has no \"%s\"", where, key);
                *ret = NULL;
                return 0;
        }
        if (!json_object_is_type(v, type))
                return luv_reason(ret_reason, -EBADMSG, "\"%s\" of %s is of type %s, not %s", key, where,
                                  json_type_to_name(json_object_get_type(v)), json_type_to_name(type));
        *ret = v;
        return 0;
}

int luv_json_get(struct json_object *o, const char *where, const char *key, enum json_type type,
                 struct json_object **ret, char **ret_reason)
{
        return get(o, where, key, type, false, ret, ret_reason);
}

int luv_json_get_string(struct json_object *o, const char *where, const char *key, bool nullable, char **ret,
                        char **ret_reason)
{
        struct json_object *v = NULL;
        const char *s;
        char *copy = NULL;
        int r;

        r = get(o, where, key, json_type_string, nullable, &v, ret_reason);
        if (r < 0)
                return r;
        if (v) {
                s = json_object_get_string(v);
                if (strlen(s) != (size_t) json_object_get_string_len(v))
                        return luv_reason(ret_reason, -EBADMSG, "\"%s\" of %s has a 0 byte in it", key,
                                          where);
                copy = strdup(s);
                if (!copy)
                        return -ENOMEM;
        }
        *ret = copy;
        return 0;
}

int luv_json_get_u64(struct json_object *o, const char *where, const char *key, bool nullable, uint64_t *ret,
                     char **ret_reason)
{
        struct json_object *v = NULL;
        int r;

        r = get(o, where, key, json_type_int, nullable, &v, ret_reason);
        if (r < 0)
                return r;
        /* What does not fit is cut to the nearest that does: 0 for the negative. */
        if (v && (json_object_get_int64(v) < 0 || json_object_get_uint64(v) == UINT64_MAX))
                return luv_reason(ret_reason, -EBADMSG, "\"%s\" of %s is out of range", key, where);
        *ret = v ? json_object_get_uint64(v) : 0;
        return 0;
}

int luv_json_get_bool(struct json_object *o, const char *where, const char *key, bool nullable, bool *ret,
                      char **ret_reason)
{
        struct json_object *v = NULL;
        int r;

        r = get(o, where, key, json_type_boolean, nullable, &v, ret_reason);
        if (r < 0)
                return r;
        *ret = v && json_object_get_boolean(v);
        return 0;
}

int luv_json_add(struct json_object *o, const char *key, struct json_object *value)
{
        if (!value)
                return -ENOMEM;
        if (json_object_object_add(o, key, value) < 0) {
                (void) json_object_put(value);
                return -ENOMEM;
        }
        return 0;
}

int luv_json_append(struct json_object *array, struct json_object *value)
{
        if (!value)
                return -ENOMEM;
        if (json_object_array_add(array, value) < 0) {
                (void) json_object_put(value);
                return -ENOMEM;
        }
        return 0;
}

int luv_json_add_array(struct json_object *o, const char *key, struct json_object **ret)
{
        *ret = json_object_new_array();
        return luv_json_add(o, key, *ret);
}

int luv_json_add_object(struct json_object *o, const char *key, struct json_object **ret)
{
        *ret = json_object_new_object();
        return luv_json_add(o, key, *ret);
}

int luv_json_append_object(struct json_object *array, struct json_object **ret)
{
        *ret = json_object_new_object();
        return luv_json_append(array, *ret);
}

int luv_json_add_string(struct json_object *o, const char *key, const char *s)
{
        return s ? luv_json_add(o, key, json_object_new_string(s)) : 0;
}

int luv_json_add_u64(struct json_object *o, const char *key, uint64_t v)
{
        return luv_json_add(o, key, json_object_new_uint64(v));
}

int luv_json_add_bool(struct json_object *o, const char *key, bool v)
{
        return luv_json_add(o, key, json_object_new_boolean(v));
}

int luv_json_get_fields(struct json_object *o, const char *where, const JsonField *fields, void *ret,
                        char **ret_reason)
{
        for (const JsonField *f = fields; f->key; f++) {
                void *member = (uint8_t *) ret + f->offset;
                int r;

                switch (f->type) {
                case json_type_string:
                        r = luv_json_get_string(o, where, f->key, f->nullable, member, ret_reason);
                        break;
                case json_type_int:
                        r = luv_json_get_u64(o, where, f->key, f->nullable, member, ret_reason);
                        break;
                default:
                        assert(f->type == json_type_boolean);
                        r = luv_json_get_bool(o, where, f->key, f->nullable, member, ret_reason);
                }
                if (r < 0)
                        return r;
        }
        return 0;
}

int luv_json_add_fields(struct json_object *o, const JsonField *fields, const void *from)
{
        for (const JsonField *f = fields; f->key; f++) {
                const void *member = (const uint8_t *) from + f->offset;
                int r = 0;

                switch (f->type) {
                case json_type_string:
                        r = luv_json_add_string(o, f->key, *(char *const *) member);
                        break;
                case json_type_int:
                        if (!f->nullable || *(const uint64_t *) member > 0)
                                r = luv_json_add_u64(o, f->key, *(const uint64_t *) member);
                        break;
                default:
                        assert(f->type == json_type_boolean);
                        if (!f->nullable || *(const bool *) member)
                                r = luv_json_add_bool(o, f->key, *(const bool *) member);
                }
                if (r < 0)
                        return r;
        }
        return 0;
}
