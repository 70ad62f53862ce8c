/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "agents/cpr.h"
#include "agents/vfio-irq.h"
#include "util/macro.h"

/*
 * What has to be known of a machine of QEMU to put it together again in another QEMU, in the same kernel or
 * in the next. One of util/document.h, in the machine's session under the name "document"; beside it, as
 * "stream", what QEMU has sent of its devices and vCPUs, which only QEMU can read.
 */

#define QEMU_DOCUMENT "document"
#define QEMU_STREAM "stream"

/* A file that luvfiod holds. */
typedef struct QemuPreserved {
        char *name; /* QEMU's */
        int32_t id; /* QEMU's */
        char *file; /* luvfiod's name of it */
} QemuPreserved;

/* An eventfd, which is made anew. */
typedef struct QemuEventfd {
        char *name;       /* QEMU's */
        int32_t id;       /* QEMU's */
        uint64_t initial; /* what it starts at */
        char *device;     /* that it is wired to, by QEMU's name; NULL: to none */
        VfioIrq irq;      /* its interrupt */
        uint64_t vector;
} QemuEventfd;

typedef struct QemuDevice {
        char *name;    /* QEMU's */
        char *address; /* PCI */
        uint64_t devid, ioas, hwpt;
} QemuDevice;

typedef struct QemuDocument {
        char *version; /* of the QEMU that wrote the stream */
        char *machine_type;
        char **argv;
        char *cwd;
        char *xml;         /* of a domain of libvirt; else NULL */
        uint64_t uid, gid; /* QEMU's, with xml */
        bool running;      /* its vCPUs ran before it was stopped for the update */
        uint64_t stream_size;
        QemuPreserved *preserved;
        size_t n_preserved;
        QemuEventfd *eventfds;
        size_t n_eventfds;
        QemuDevice *devices;
        size_t n_devices;
} QemuDocument;

QemuDocument *luv_qemu_document_free(QemuDocument *d);
DEFINE_CLEANUP(QemuDocument *, luv_qemu_document_free);

/* Copies of what is given. -ENOMEM. */
int luv_qemu_document_add_preserved(QemuDocument *d, const QemuPreserved *p);
int luv_qemu_document_add_eventfd(QemuDocument *d, const QemuEventfd *e);
/* In place of the one of that name and id, if there is one. */
int luv_qemu_document_set_eventfd(QemuDocument *d, const QemuEventfd *e);
int luv_qemu_document_add_device(QemuDocument *d, const QemuDevice *x);

QemuEventfd *luv_qemu_document_find_eventfd(const QemuDocument *d, const char *name, int32_t id);

/* It is read back first. -EINVAL: what would be refused later; with a sentence. */
int luv_qemu_document_write(const QemuDocument *d, int *ret_fd, char **ret_reason);
/* -EBADMSG, -EPROTONOSUPPORT; with a sentence. */
int luv_qemu_document_read(int fd, QemuDocument **ret, char **ret_reason);
