/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <endian.h>
#include <sys/stat.h>

#include "util/crc32c.h"
#include "util/document.h"
#include "util/io.h"
#include "util/json-util.h"
#include "util/string-util.h"

/* Raised with every change; MIN_READER only where an older reader would go wrong. */
#define DOCUMENT_VERSION 1
#define DOCUMENT_MIN_READER 1

typedef struct __attribute__((packed)) Envelope {
        char magic[8];
        uint16_t version, min_reader;
        uint32_t kind;
        uint64_t length;
        uint32_t crc;
} Envelope;

static const char magic[8] = { 'L', 'U', 'V', 'F', 'I', 'O', 'D', 'C' };

static const char *document_kind_to_string(uint32_t kind)
{
        return kind == DOCUMENT_HOST      ? "host record"
               : kind == DOCUMENT_MACHINE ? "machine record"
               : kind == DOCUMENT_QEMU    ? "QEMU record"
                                          : "document of an unknown kind";
}

int luv_document_write(DocumentKind kind, struct json_object *o, int *ret_fd, char **ret_reason)
{
        _cleanup_free_ uint8_t *document = NULL;
        Envelope e = {
                .version = htole16(DOCUMENT_VERSION),
                .min_reader = htole16(DOCUMENT_MIN_READER),
                .kind = htole32(kind),
        };
        const char *text;
        uint32_t crc;
        size_t size;
        int fd;

        text = json_object_to_json_string_length(o, JSON_C_TO_STRING_PLAIN, &size);
        if (!text)
                return -ENOMEM;
        if (size > LUVFIO_JSON_SIZE_MAX)
                return luv_reason(ret_reason, -EINVAL, "the %s would have %zu bytes, which is more than %zu",
                                  document_kind_to_string(kind), size, LUVFIO_JSON_SIZE_MAX);
        memcpy(e.magic, magic, sizeof(e.magic));
        e.length = htole64(size);
        crc = luv_crc32c(&e, offsetof(Envelope, crc));
        e.crc = htole32(luv_crc32c_extend(crc, text, size));

        document = malloc(sizeof(e) + size);
        if (!document)
                return -ENOMEM;
        memcpy(document, &e, sizeof(e));
        memcpy(document + sizeof(e), text, size);
        fd = luv_memfd_sealed("luvfio-record", document, sizeof(e) + size);
        if (fd < 0)
                return luv_reason(ret_reason, fd, "no memory for the %s: %s", document_kind_to_string(kind),
                                  strerror(-fd));
        *ret_fd = fd;
        return 0;
}

int luv_document_read(int fd, DocumentKind kind, struct json_object **ret, char **ret_reason)
{
        const char *what = document_kind_to_string(kind);
        _cleanup_free_ char *text = NULL;
        struct stat st;
        uint64_t size;
        uint32_t crc;
        Envelope e;
        int r;

        if (fstat(fd, &st) < 0)
                return luv_reason(ret_reason, negative_errno(), "the %s cannot be looked at", what);
        if (!S_ISREG(st.st_mode))
                return luv_reason(ret_reason, -EBADMSG, "what should be the %s is no file", what);
        size = (uint64_t) st.st_size;
        if (size < sizeof(e))
                return luv_reason(ret_reason, -EBADMSG, "the %s has %llu bytes, too few for its header",
                                  what, (unsigned long long) size);
        r = luv_pread_all(fd, &e, sizeof(e), 0);
        if (r < 0)
                return luv_reason(ret_reason, r == -ENODATA ? -EBADMSG : r, "the %s cannot be read: %s",
                                  what, strerror(-r));
        if (memcmp(e.magic, magic, sizeof(magic)) != 0)
                return luv_reason(ret_reason, -EBADMSG,
                                  "what should be the %s does not begin as a document of ours", what);
        /* Before anything else that another version may have changed. */
        if (le16toh(e.min_reader) > DOCUMENT_VERSION)
                return luv_reason(ret_reason, -EPROTONOSUPPORT,
                                  "the %s was written in version %u, which asks for a reader of version %u; "
                                  "this is %u",
                                  what, le16toh(e.version), le16toh(e.min_reader), DOCUMENT_VERSION);
        if (e.version == 0 || e.min_reader == 0 || le16toh(e.min_reader) > le16toh(e.version))
                return luv_reason(ret_reason, -EBADMSG, "the %s has versions that make no sense", what);
        if (le64toh(e.length) > LUVFIO_JSON_SIZE_MAX || le64toh(e.length) != size - sizeof(e))
                return luv_reason(ret_reason, -EBADMSG, "the %s says that it has %llu bytes, and has %llu",
                                  what, (unsigned long long) le64toh(e.length),
                                  (unsigned long long) (size - sizeof(e)));

        size -= sizeof(e);
        text = malloc(size + 1);
        if (!text)
                return -ENOMEM;
        r = luv_pread_all(fd, text, size, sizeof(e));
        if (r < 0)
                return luv_reason(ret_reason, r == -ENODATA ? -EBADMSG : r, "the %s cannot be read: %s",
                                  what, strerror(-r));
        crc = luv_crc32c(&e, offsetof(Envelope, crc));
        if (luv_crc32c_extend(crc, text, size) != le32toh(e.crc))
                return luv_reason(ret_reason, -EBADMSG, "the %s is damaged: its checksum is wrong", what);
        if (le32toh(e.kind) != kind)
                return luv_reason(ret_reason, -EBADMSG, "what should be the %s is a %s", what,
                                  document_kind_to_string(le32toh(e.kind)));
        text[size] = 0;
        return luv_json_parse(text, size, ret, ret_reason);
}
