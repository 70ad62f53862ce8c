/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <json-c/json.h>

#include "util/macro.h"

/*
 * What is around every document that crosses the jump. A sealed memfd: envelope {magic "LUVFIODC", u16
 * version, u16 min_reader, u32 kind, u64 length of the JSON, u32 CRC-32C of all before it and of the JSON},
 * little endian, then JSON of at most 16 MiB and 16 levels.
 */

typedef enum DocumentKind {
        DOCUMENT_HOST = 1,    /* restore/manifest.h */
        DOCUMENT_MACHINE = 2, /* the same */
        DOCUMENT_QEMU = 3,    /* agents/qemu-document.h */
} DocumentKind;

/* -EINVAL: too large; -errno; with a sentence. */
int luv_document_write(DocumentKind kind, struct json_object *o, int *ret_fd, char **ret_reason);
/* -EBADMSG: damaged, or of another kind; -EPROTONOSUPPORT: of a version that cannot be read; with a
 * sentence. */
int luv_document_read(int fd, DocumentKind kind, struct json_object **ret, char **ret_reason);
