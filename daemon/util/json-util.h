/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <json-c/json.h>

#include "util/macro.h"

/* json-c for documents that outlive the process: manifest, history, plugin configuration. Never the socket.
 */

#define LUVFIO_JSON_SIZE_MAX ((size_t) 16 * 1024 * 1024)
#define LUVFIO_JSON_DEPTH_MAX 16

static inline void json_object_putp(struct json_object **o)
{
        if (*o)
                (void) json_object_put(*o);
}
#define _cleanup_json_ _cleanup_(json_object_putp)

/* One whole JSON value, strict, UTF-8, nothing after it. -EBADMSG, with a sentence. */
int luv_json_parse(const char *data, size_t size, struct json_object **ret, char **ret_reason);

/*
 * Members of an object, strictly typed. -EBADMSG with a sentence that names the member. Outputs of a
 * nullable member that is absent or null are NULL or 0. WHERE names the object for the sentence.
 */
int luv_json_get(struct json_object *o, const char *where, const char *key, enum json_type type,
                 struct json_object **ret, char **ret_reason);
int luv_json_get_string(struct json_object *o, const char *where, const char *key, bool nullable, char **ret,
                        char **ret_reason);
/* 0..2^64-2: an integer that is not negative and was not cut. */
int luv_json_get_u64(struct json_object *o, const char *where, const char *key, bool nullable, uint64_t *ret,
                     char **ret_reason);
int luv_json_get_bool(struct json_object *o, const char *where, const char *key, bool nullable, bool *ret,
                      char **ret_reason);

/* Members of an object that are members of a struct: how they are read and how they are written in one. */
typedef struct JsonField {
        const char *key; /* NULL: the end */
        enum json_type type;
        size_t offset;
        bool nullable; /* not written where it is NULL, 0 or false */
} JsonField;

#define JSON_STRING(struct_type, member, nullable)                                                          \
        { #member, json_type_string, offsetof(struct_type, member), nullable }
#define JSON_U64(struct_type, member, nullable)                                                             \
        { #member, json_type_int, offsetof(struct_type, member), nullable }
#define JSON_BOOL(struct_type, member, nullable)                                                            \
        { #member, json_type_boolean, offsetof(struct_type, member), nullable }

/* On failure what was read stays in the struct, whose owner frees it. */
int luv_json_get_fields(struct json_object *o, const char *where, const JsonField *fields, void *ret,
                        char **ret_reason);
int luv_json_add_fields(struct json_object *o, const JsonField *fields, const void *from);

/* Add a member, or an element; a NULL string adds nothing. -ENOMEM. */
int luv_json_add(struct json_object *o, const char *key, struct json_object *value /* taken */);
int luv_json_append(struct json_object *array, struct json_object *value /* taken */);
/* New ones, empty; *RET is its parent's. */
int luv_json_add_array(struct json_object *o, const char *key, struct json_object **ret);
int luv_json_add_object(struct json_object *o, const char *key, struct json_object **ret);
int luv_json_append_object(struct json_object *array, struct json_object **ret);
int luv_json_add_string(struct json_object *o, const char *key, const char *s);
int luv_json_add_u64(struct json_object *o, const char *key, uint64_t v);
int luv_json_add_bool(struct json_object *o, const char *key, bool v);
