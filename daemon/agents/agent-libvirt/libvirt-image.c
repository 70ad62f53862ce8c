/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <dirent.h>
#include <fcntl.h>
#include <glib.h>
#include <zlib.h>

#include "agents/agent-libvirt/libvirt-private.h"
#include "util/io.h"
#include "util/log.h"
#include "util/string-util.h"

/*
 * A saved machine, as libvirt has had it since 0.9 or so: a header, the domain's XML with its 0 byte, and
 * what QEMU has sent. In the byte order of the host.
 */
#define IMAGE_MAGIC "LibvirtQemudSave"
#define IMAGE_VERSION 2u
#define IMAGE_GZIP 1u

typedef struct __attribute__((packed)) ImageHeader {
        char magic[16];
        uint32_t version, xml_size, running, compressed, cookie;
        uint32_t unused[14];
} ImageHeader;

#define STATUS_SIZE_MAX ((size_t) 16 * 1024 * 1024)

/* As libvirt itself writes them. */
#define QEMU_NAMESPACE "http://libvirt.org/schemas/domain/qemu/1.0"
#define COMMANDLINE "qemu:commandline"
#define ARGUMENT "qemu:arg"

static const char *attribute(const char *const *names, const char *const *values, const char *name)
{
        for (size_t i = 0; names[i]; i++)
                if (streq(names[i], name))
                        return values[i];
        return "";
}

static int parse(const char *xml, const GMarkupParser *parser, void *userdata, char **ret_reason)
{
        GMarkupParseContext *c =
                        g_markup_parse_context_new(parser, G_MARKUP_PREFIX_ERROR_POSITION, userdata, NULL);
        GError *error = NULL;
        int r = 0;

        if (!g_markup_parse_context_parse(c, xml, -1, &error) ||
            !g_markup_parse_context_end_parse(c, &error)) {
                r = luv_reason(ret_reason, -EBADMSG, "what libvirt says of the domain is no XML of one: %s",
                               error->message);
                g_error_free(error);
        }
        g_markup_parse_context_free(c);
        return r;
}

/* Writes what it reads, but for the arguments of QEMU. */
typedef struct Copy {
        GString *out;
        const char *root;
        const char *channel; /* NULL: none is to be added */
        bool commandline;    /* there is one */
        unsigned skip;       /* arguments yet */
        bool skipping;       /* one */
        bool skipped;        /* any */
} Copy;

static void copy_text(GMarkupParseContext *c, const char *text, gsize size, gpointer userdata,
                      GError **error)
{
        char *escaped = g_markup_escape_text(text, (gssize) size);
        Copy *x = userdata;

        if (!x->skipping)
                g_string_append(x->out, escaped);
        g_free(escaped);
}

static void copy_start(GMarkupParseContext *c, const char *name, const char **names, const char **values,
                       gpointer userdata, GError **error)
{
        Copy *x = userdata;

        if (!g_markup_parse_context_get_element_stack(c)->next && !streq(name, x->root)) {
                g_set_error(error, G_MARKUP_ERROR, G_MARKUP_ERROR_UNKNOWN_ELEMENT, "it begins with <%s>",
                            name);
                return;
        }
        x->commandline = x->commandline || streq(name, COMMANDLINE);
        if (streq(name, ARGUMENT)) {
                /* Of an earlier update: this one and what follows it. */
                if (streq(attribute(names, values, "value"), "-incoming"))
                        x->skip = 2;
                x->skipping = x->skip > 0;
                x->skipped = x->skipped || x->skipping;
                x->skip -= x->skipping;
        }
        if (x->skipping)
                return;
        g_string_append_printf(x->out, "<%s", name);
        for (size_t i = 0; names[i]; i++) {
                char *escaped = g_markup_escape_text(values[i], -1);

                g_string_append_printf(x->out, " %s=\"%s\"", names[i], escaped);
                g_free(escaped);
        }
        g_string_append_c(x->out, '>');
}

static void add_argument(Copy *x, const char *value)
{
        char *escaped = g_markup_escape_text(value, -1);

        g_string_append_printf(x->out, "<" ARGUMENT " value=\"%s\"/>", escaped);
        g_free(escaped);
}

static void add_incoming(Copy *x)
{
        if (!x->channel)
                return;
        add_argument(x, "-incoming");
        add_argument(x, x->channel);
}

static void copy_end(GMarkupParseContext *c, const char *name, gpointer userdata, GError **error)
{
        Copy *x = userdata;

        if (x->skipping) {
                x->skipping = false;
                return;
        }
        if (streq(name, COMMANDLINE))
                add_incoming(x);
        else if (x->channel && !x->commandline && !g_markup_parse_context_get_element_stack(c)->next) {
                g_string_append(x->out, "<" COMMANDLINE " xmlns:qemu=\"" QEMU_NAMESPACE "\">");
                add_incoming(x);
                g_string_append(x->out, "</" COMMANDLINE ">");
        }
        g_string_append_printf(x->out, "</%s>", name);
}

static int copy(Copy *x, const char *xml, char **ret, char **ret_reason)
{
        static const GMarkupParser parser = { .start_element = copy_start,
                                              .end_element = copy_end,
                                              .text = copy_text };
        int r;

        x->out = g_string_new(NULL);
        r = parse(xml, &parser, x, ret_reason);
        if (r >= 0) {
                *ret = strdup(x->out->str);
                r = *ret ? 0 : -ENOMEM;
        }
        g_string_free(x->out, TRUE);
        return r;
}

int luv_libvirt_image_xml(const char *xml, const char *cpr_path, char **ret, char **ret_reason)
{
        _cleanup_free_ char *channel =
                        luv_strf("{\"channel-type\":\"cpr\",\"addr\":{\"transport\":\"socket\",\"type\":"
                                 "\"unix\",\"path\":\"%s\"}}",
                                 cpr_path);
        Copy x = { .root = "domain", .channel = channel };

        return channel ? copy(&x, xml, ret, ret_reason) : -ENOMEM;
}

/* 1: what was added to a saved machine's XML is in this status of a domain; *RET is without. */
static int tidy_status(const char *path, char **ret)
{
        _cleanup_free_ char *xml = NULL, *without = NULL, *reason = NULL;
        Copy x = { .root = "domstatus" };
        size_t size;
        int r;

        r = luv_read_file(AT_FDCWD, path, STATUS_SIZE_MAX, &xml, &size);
        if (r >= 0)
                r = copy(&x, xml, &without, &reason);
        if (r < 0) {
                luv_log_warning("%s: %s", path, reason ? reason : strerror(-r));
                return r;
        }
        *ret = TAKE_PTR(without);
        return x.skipped;
}

int luv_libvirt_tidy(const char *dir, bool write)
{
        const struct dirent *e;
        DIR *d = opendir(dir);
        int n = 0;

        if (!d)
                return errno == ENOENT ? 0 : luv_log_error(negative_errno(), "%s cannot be read", dir);
        while ((e = readdir(d))) {
                _cleanup_free_ char *path = luv_strf("%s/%s", dir, e->d_name), *without = NULL;
                const char *dot = strrchr(e->d_name, '.');
                int r;

                if (!path || !dot || !streq(dot, ".xml") || tidy_status(path, &without) <= 0)
                        continue;
                r = write ? luv_write_file_atomic(AT_FDCWD, path, without, strlen(without), 0600) : 0;
                if (r < 0)
                        luv_log_error(r, "%s cannot be written", path);
                else
                        n++;
        }
        (void) closedir(d);
        return n;
}

/* gzip's format. */
static int compress_stream(int fd, uint64_t size, uint8_t **ret, size_t *ret_size)
{
        _cleanup_free_ uint8_t *in = malloc(size), *out = NULL;
        z_stream z = {};
        int r;

        if (!in || size > UINT32_MAX)
                return !in ? -ENOMEM : -EFBIG;
        r = luv_pread_all(fd, in, size, 0);
        if (r < 0)
                return r;
        if (deflateInit2(&z, Z_BEST_SPEED, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY) != Z_OK)
                return -ENOMEM;
        z.next_in = in;
        z.avail_in = (uInt) size;
        z.avail_out = (uInt) deflateBound(&z, (uLong) size);
        out = malloc(z.avail_out);
        z.next_out = out;
        r = out && deflate(&z, Z_FINISH) == Z_STREAM_END ? 0 : -ENOMEM;
        *ret_size = z.total_out;
        (void) deflateEnd(&z);
        if (r >= 0)
                *ret = TAKE_PTR(out);
        return r;
}

int luv_libvirt_image_write(const char *path, const char *xml, const char *cpr_path, int stream_fd,
                            uint64_t stream_size, bool running, char **ret_reason)
{
        ImageHeader h = { .version = IMAGE_VERSION, .running = running, .compressed = IMAGE_GZIP };
        _cleanup_free_ char *changed = NULL;
        _cleanup_free_ uint8_t *stream = NULL, *image = NULL;
        size_t n, size;
        int r;

        r = luv_libvirt_image_xml(xml, cpr_path, &changed, ret_reason);
        if (r >= 0)
                r = compress_stream(stream_fd, stream_size, &stream, &n);
        if (r < 0)
                return r;
        memcpy(h.magic, IMAGE_MAGIC, sizeof(h.magic));
        h.xml_size = (uint32_t) strlen(changed) + 1;
        size = sizeof(h) + h.xml_size + n;
        image = malloc(size);
        if (!image)
                return -ENOMEM;
        memcpy(image, &h, sizeof(h));
        memcpy(image + sizeof(h), changed, h.xml_size);
        memcpy(image + sizeof(h) + h.xml_size, stream, n);
        r = luv_write_file_atomic(AT_FDCWD, path, image, size, 0600);
        if (r < 0)
                return luv_reason(ret_reason, r, "%s cannot be written: %s", path, strerror(-r));
        return 0;
}

/* Reading. */

void luv_libvirt_xml_done(LibvirtXml *x)
{
        luv_strv_free(x->devices);
        luv_strv_free(x->managed);
        luv_strv_free(x->no_iommufd);
        *x = (LibvirtXml) {};
}

/* Where in the document it is. */
typedef struct Read {
        LibvirtXml *x;
        bool hostdev, managed, iommufd; /* of a hostdev that is a PCI device */
        char *address;
        int error;
} Read;

static unsigned long number(const char *s)
{
        return strtoul(s, NULL, 0);
}

static void read_start(GMarkupParseContext *c, const char *name, const char **names, const char **values,
                       gpointer userdata, GError **error)
{
        const GSList *above = g_markup_parse_context_get_element_stack(c)->next;
        const char *parent = above ? above->data : "";
        Read *r = userdata;

        if (!above && !streq(name, "domain"))
                g_set_error(error, G_MARKUP_ERROR, G_MARKUP_ERROR_UNKNOWN_ELEMENT, "it begins with <%s>",
                            name);
        else if (streq(name, "hostdev") && streq(parent, "devices")) {
                r->hostdev = streq(attribute(names, values, "type"), "pci");
                r->managed = streq(attribute(names, values, "managed"), "yes");
                r->iommufd = false;
        } else if (r->hostdev && streq(name, "driver") && streq(parent, "hostdev"))
                r->iommufd = streq(attribute(names, values, "iommufd"), "yes");
        else if (r->hostdev && streq(name, "address") && streq(parent, "source")) {
                free(r->address);
                r->address = luv_strf("%04lx:%02lx:%02lx.%lx", number(attribute(names, values, "domain")),
                                      number(attribute(names, values, "bus")),
                                      number(attribute(names, values, "slot")),
                                      number(attribute(names, values, "function")));
        }
}

static void read_end(GMarkupParseContext *c, const char *name, gpointer userdata, GError **error)
{
        Read *r = userdata;

        if (!r->hostdev || !streq(name, "hostdev"))
                return;
        r->hostdev = false;
        if (!r->address)
                r->error = -ENOMEM;
        if (r->error >= 0)
                r->error = luv_strv_extend(&r->x->devices, r->address);
        if (r->error >= 0 && r->managed)
                r->error = luv_strv_extend(&r->x->managed, r->address);
        if (r->error >= 0 && !r->iommufd)
                r->error = luv_strv_extend(&r->x->no_iommufd, r->address);
}

int luv_libvirt_xml_parse(const char *xml, LibvirtXml *ret, char **ret_reason)
{
        static const GMarkupParser parser = { .start_element = read_start, .end_element = read_end };
        _cleanup_(luv_libvirt_xml_done) LibvirtXml x = {};
        Read read = { .x = &x };
        int r;

        r = parse(xml, &parser, &read, ret_reason);
        free(read.address);
        if (r >= 0)
                r = read.error;
        if (r < 0)
                return r;
        *ret = x;
        x = (LibvirtXml) {};
        return 0;
}
