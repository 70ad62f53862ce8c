/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <endian.h>
#include <sys/stat.h>

#include "kexec/kexec-internal.h"
#include "util/crc32c.h"
#include "util/io.h"
#include "util/string-util.h"

/* Offsets in the x86 boot protocol's setup header. */
#define SETUP_SECTS 0x1f1
#define SETUP_SYSSIZE 0x1f4
#define SETUP_BOOT_FLAG 0x1fe
#define SETUP_MAGIC 0x202
#define SETUP_VERSION 0x206
#define SETUP_KERNEL_VERSION 0x20e
#define SETUP_XLOADFLAGS 0x236
#define SETUP_SIZE 0x240

#define BOOT_FLAG 0xaa55
#define SECTOR 512u
/* The first version that has xloadflags. */
#define VERSION_MIN 0x20c
#define XLF_KERNEL_64 1

/* A kernel of more than this is no kernel. */
#define IMAGE_SIZE_MAX (UINT64_C(1) << 30)

/* In the image, somewhere: this, length, checksum (little endian), and then the text. */
static const char abi_magic[16] = "LUVFIO-LUO-ABI\0";
#define ABI_HEADER 24u
#define ABI_SIZE_MAX (64u * 1024u)

void luv_kexec_image_done(KexecImage *i)
{
        free(i->release);
        free(i->abi);
        *i = (KexecImage) {};
}

static uint16_t read_le16(const uint8_t *p)
{
        uint16_t v;

        memcpy(&v, p, sizeof(v));
        return le16toh(v);
}

static uint32_t read_le32(const uint8_t *p)
{
        uint32_t v;

        memcpy(&v, p, sizeof(v));
        return le32toh(v);
}

/* What a file that ends too early, or shrinks while it is read, amounts to. */
static int pread_image(int fd, void *buffer, size_t size, uint64_t offset, char **ret_reason)
{
        int r;

        r = luv_pread_all(fd, buffer, size, (off_t) offset);
        if (r == -ENODATA)
                return luv_reason(ret_reason, -ENOEXEC, "the kernel image ends before its end");
        if (r < 0)
                return luv_reason(ret_reason, r, "the kernel image cannot be read: %s", strerror(-r));
        return 0;
}

#define PE_HEADER_AT 0x3c
#define PE_SECTION_SIZE 40u
#define PE_SECTIONS_MAX 256u

/* A section of a PE image; -ENOENT. */
static int find_section(int fd, uint64_t size, const char *name, KexecPart *ret, char **ret_reason)
{
        uint8_t dos[0x40], coff[24], section[PE_SECTION_SIZE];
        char wanted[8] = {};
        uint64_t at;
        unsigned n;
        int r;

        r = pread_image(fd, dos, sizeof(dos), 0, ret_reason);
        if (r < 0)
                return r;
        at = read_le32(dos + PE_HEADER_AT);
        if (dos[0] != 'M' || dos[1] != 'Z' || at + sizeof(coff) > size)
                return -ENOENT;
        r = pread_image(fd, coff, sizeof(coff), at, ret_reason);
        if (r < 0)
                return r;
        if (memcmp(coff, "PE\0\0", 4) != 0)
                return -ENOENT;
        n = MIN((unsigned) read_le16(coff + 6), PE_SECTIONS_MAX);
        at += sizeof(coff) + read_le16(coff + 20);

        memcpy(wanted, name, MIN(strlen(name), sizeof(wanted)));
        for (unsigned i = 0; i < n; i++, at += sizeof(section)) {
                uint64_t length, offset;

                if (at + sizeof(section) > size)
                        break;
                r = pread_image(fd, section, sizeof(section), at, ret_reason);
                if (r < 0)
                        return r;
                if (memcmp(section, wanted, sizeof(wanted)) != 0)
                        continue;
                /* On disk a section is padded: its true length is the shorter one. */
                length = MIN(read_le32(section + 8), read_le32(section + 16));
                offset = read_le32(section + 20);
                if (offset > size || length > size - offset)
                        return luv_reason(ret_reason, -ENOEXEC, "section %s of the UKI goes beyond its end",
                                          name);
                *ret = (KexecPart) { .offset = offset, .size = length };
                return 0;
        }
        return -ENOENT;
}

static bool is_bzimage(const uint8_t *setup)
{
        return read_le16(setup + SETUP_BOOT_FLAG) == BOOT_FLAG &&
               memcmp(setup + SETUP_MAGIC, "HdrS", 4) == 0;
}

int luv_kexec_locate(int kernel_fd, KexecPart *ret_kernel, KexecPart *ret_initrd, char **ret_reason)
{
        KexecPart kernel, initrd = {};
        uint8_t setup[SETUP_SIZE];
        struct stat st;
        uint64_t size;
        int r;

        if (fstat(kernel_fd, &st) < 0)
                return luv_reason(ret_reason, negative_errno(), "the kernel image cannot be looked at");
        if (!S_ISREG(st.st_mode))
                return luv_reason(ret_reason, -ENOEXEC, "the kernel image is no regular file");
        size = (uint64_t) st.st_size;
        if (size < SETUP_SIZE)
                return luv_reason(ret_reason, -ENOEXEC,
                                  "the kernel image is too short to be one (%llu bytes)",
                                  (unsigned long long) size);
        if (size > IMAGE_SIZE_MAX)
                return luv_reason(ret_reason, -ENOEXEC, "the kernel image is too big to be one (%llu bytes)",
                                  (unsigned long long) size);

        kernel = (KexecPart) { .offset = 0, .size = size };
        r = pread_image(kernel_fd, setup, sizeof(setup), 0, ret_reason);
        if (r < 0)
                return r;
        if (!is_bzimage(setup)) {
                r = find_section(kernel_fd, size, ".linux", &kernel, ret_reason);
                if (r == -ENOENT)
                        return luv_reason(ret_reason, -ENOEXEC,
                                          "the file is no x86 kernel image (bzImage) and no UKI that holds "
                                          "one");
                if (r < 0)
                        return r;
                if (kernel.size < SETUP_SIZE)
                        return luv_reason(ret_reason, -ENOEXEC,
                                          "section .linux of the UKI is too short to be a kernel");
                r = pread_image(kernel_fd, setup, sizeof(setup), kernel.offset, ret_reason);
                if (r < 0)
                        return r;
                if (!is_bzimage(setup))
                        return luv_reason(ret_reason, -ENOEXEC,
                                          "section .linux of the UKI is no x86 kernel image");
                r = find_section(kernel_fd, size, ".initrd", &initrd, ret_reason);
                if (r < 0 && r != -ENOENT)
                        return r;
        }
        *ret_kernel = kernel;
        if (ret_initrd)
                *ret_initrd = initrd;
        return 0;
}

static int read_release(int fd, const KexecPart *kernel, char **ret, char **ret_reason)
{
        uint8_t setup[SETUP_SIZE];
        uint64_t at, end, whole, sectors;
        char text[256];
        size_t n;
        int r;

        r = pread_image(fd, setup, sizeof(setup), kernel->offset, ret_reason);
        if (r < 0)
                return r;
        if (read_le16(setup + SETUP_VERSION) < VERSION_MIN)
                return luv_reason(ret_reason, -ENOEXEC, "the kernel image is of before Linux 3.8");
        if (!(read_le16(setup + SETUP_XLOADFLAGS) & XLF_KERNEL_64))
                return luv_reason(ret_reason, -ENOEXEC, "the kernel image has no 64-bit entry");

        /* 0 stands for 4, for the sake of very old ones. */
        sectors = setup[SETUP_SECTS] ? setup[SETUP_SECTS] : 4;
        end = (sectors + 1) * SECTOR;
        whole = end + (uint64_t) read_le32(setup + SETUP_SYSSIZE) * 16;
        if (whole > kernel->size)
                return luv_reason(ret_reason, -ENOEXEC,
                                  "the kernel image is cut off: %llu of %llu bytes are there",
                                  (unsigned long long) kernel->size, (unsigned long long) whole);

        at = read_le16(setup + SETUP_KERNEL_VERSION);
        if (at == 0)
                return luv_reason(ret_reason, -ENOEXEC, "the kernel image does not say its version");
        at += SECTOR;
        if (at >= end)
                return luv_reason(ret_reason, -ENOEXEC,
                                  "the kernel image's version is outside of its header");
        n = (size_t) MIN(sizeof(text) - 1, end - at);
        r = pread_image(fd, text, n, kernel->offset + at, ret_reason);
        if (r < 0)
                return r;
        text[n] = 0;
        /* "7.3.4-a (who@where) #1 SMP ..." */
        n = strcspn(text, " ");
        text[n] = 0;
        if (!luv_fd_name_valid(text))
                return luv_reason(ret_reason, -ENOEXEC, "the kernel image's version is no text");
        *ret = strdup(text);
        return *ret ? 0 : -ENOMEM;
}

/* The table at AT, if what is there is one. */
static int read_abi_at(int fd, uint64_t at, uint64_t end, char **ret)
{
        _cleanup_free_ char *text = NULL;
        uint8_t header[ABI_HEADER];
        uint32_t length;
        int r;

        if (end - at < sizeof(header))
                return -ENOENT;
        r = luv_pread_all(fd, header, sizeof(header), (off_t) at);
        if (r < 0)
                return r;
        length = read_le32(header + 16);
        if (length == 0 || length > ABI_SIZE_MAX || length > end - at - sizeof(header))
                return -ENOENT;
        text = malloc(length + 1);
        if (!text)
                return -ENOMEM;
        r = luv_pread_all(fd, text, length, (off_t) (at + sizeof(header)));
        if (r < 0)
                return r;
        text[length] = 0;
        if (luv_crc32c(text, length) != read_le32(header + 20) || strlen(text) != length)
                return -ENOENT;
        *ret = TAKE_PTR(text);
        return 0;
}

static int scan_abi(int fd, const KexecPart *kernel, char **ret, char **ret_reason)
{
        const size_t chunk = (size_t) 1024 * 1024;
        _cleanup_free_ uint8_t *buffer = malloc(chunk);
        uint64_t at = kernel->offset, end = kernel->offset + kernel->size;
        int r;

        if (!buffer)
                return -ENOMEM;
        while (end - at >= ABI_HEADER) {
                size_t n = (size_t) MIN((uint64_t) chunk, end - at);
                const uint8_t *p = buffer;

                r = pread_image(fd, buffer, n, at, ret_reason);
                if (r < 0)
                        return r;
                while ((p = memmem(p, n - (size_t) (p - buffer), abi_magic, sizeof(abi_magic)))) {
                        r = read_abi_at(fd, at + (uint64_t) (p - buffer), end, ret);
                        /* The kernel's own code may hold the magic too: what has no valid sum is no table.
                         */
                        if (r != -ENOENT)
                                return r;
                        p++;
                }
                if (n < chunk)
                        break;
                /* A magic may lie across the border. */
                at += n - (sizeof(abi_magic) - 1);
        }
        *ret = NULL;
        return 0;
}

int luv_kexec_inspect(int kernel_fd, KexecImage *ret, char **ret_reason)
{
        _cleanup_(luv_kexec_image_done) KexecImage i = {};
        KexecPart kernel = {};
        int r;

        r = luv_kexec_locate(kernel_fd, &kernel, NULL, ret_reason);
        if (r < 0)
                return r;
        i.size = kernel.size;
        r = read_release(kernel_fd, &kernel, &i.release, ret_reason);
        if (r < 0)
                return r;
        r = scan_abi(kernel_fd, &kernel, &i.abi, ret_reason);
        if (r < 0)
                return r;
        *ret = (KexecImage) { .release = TAKE_PTR(i.release), .abi = TAKE_PTR(i.abi), .size = i.size };
        return 0;
}

/* One line of a table: kind, name, mode. False if it is no such line. */
static bool next_entry(const char **text, char kind[static 64], char name[static 128], char mode[static 16],
                       int *ret_error)
{
        *ret_error = 0;
        while (**text) {
                size_t n = strcspn(*text, "\n");
                char line[256], end;

                if (n == 0) {
                        (*text)++;
                        continue;
                }
                if (n >= sizeof(line)) {
                        *ret_error = -EBADMSG;
                        return false;
                }
                memcpy(line, *text, n);
                line[n] = 0;
                *text += n;
                if (sscanf(line, " %63s %127s %15s %c", kind, name, mode, &end) != 3) {
                        *ret_error = -EBADMSG;
                        return false;
                }
                return true;
        }
        return false;
}

int luv_kexec_abi_compatible(const char *running, const char *target, char **ret_reason)
{
        char kind[64], name[128], mode[16], target_kind[64], target_name[128], target_mode[16];
        int error;

        if (!running)
                return luv_reason(ret_reason, -EPROTONOSUPPORT,
                                  "the running kernel does not say what live-update state it writes");
        if (!target)
                return luv_reason(ret_reason, -EPROTONOSUPPORT,
                                  "the image does not say what live-update state it reads");

        while (next_entry(&running, kind, name, mode, &error)) {
                const char *rest = target;
                bool read = false;

                if (!strchr(mode, 'w'))
                        continue;
                while (!read && next_entry(&rest, target_kind, target_name, target_mode, &error))
                        read = streq(kind, target_kind) && streq(name, target_name) &&
                               strchr(target_mode, 'r');
                if (error < 0)
                        return luv_reason(ret_reason, -EPROTONOSUPPORT,
                                          "the image's table of live-update state is damaged");
                if (!read)
                        return luv_reason(
                                        ret_reason, -EPROTONOSUPPORT,
                                        "the running kernel writes %s \"%s\", which the image does not read",
                                        kind, name);
        }
        if (error < 0)
                return luv_reason(ret_reason, -EPROTONOSUPPORT,
                                  "the running kernel's table of live-update state is damaged");
        return 0;
}
