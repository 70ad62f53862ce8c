/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <systemd/sd-daemon.h>

#include <luvfio/luvfio.h>
#include <luvfio/plugin.h>

#include "agents/cpr.h"
#include "agents/qemu-check.h"
#include "agents/qemu-document.h"
#include "agents/qemu-machine.h"
#include "agents/qemu-process.h"
#include "agents/qemu-replay.h"
#include "agents/qmp.h"
#include "agents/vfio-irq.h"
#include "machine/peer.h"
#include "util/io.h"
#include "util/log.h"
#include "util/string-util.h"
#include "util/time-util.h"

#define START_USEC (60 * USEC_PER_SEC)
#define CALL_USEC (10 * USEC_PER_SEC)
#define REPLAY_USEC (60 * USEC_PER_SEC)
#define STREAM_SIZE_MAX (UINT64_C(1) << 32)

typedef enum QemuState {
        QEMU_NONE,     /* no process, or not yet */
        QEMU_RUNNING,  /* it is as its user wants it */
        QEMU_HELD,     /* it runs, and waits for the end of the channel on which it handed its files over */
        QEMU_CAPTURED, /* all of it is here; its process stands and must not run again */
} QemuState;

struct QemuMachine {
        QemuMachineConfig config;
        struct luvfio *l;

        QemuState state;
        QemuProcess process;
        Qmp *qmp;
        sd_event_source *process_source, *qmp_source, *stop_source;

        QemuHeld *held;
        size_t n_held;
        uint64_t last_file; /* number of the file that was named last */

        int main_fd; /* listening */
        int cpr_fd;  /* the channel that is held open */
        CprState cpr;

        QemuDocument *document;
        int document_fd, stream_fd;

        bool stop;
};

static int adopt(QemuMachine *m, const char *monitor);

static char *path_of(const QemuMachine *m, const char *name)
{
        return luv_strf("%s/%s", m->config.runtime_dir, name);
}

static void release_qemu(QemuMachine *m)
{
        m->qmp_source = sd_event_source_disable_unref(m->qmp_source);
        m->process_source = sd_event_source_disable_unref(m->process_source);
        m->qmp = luv_qmp_free(m->qmp);
        luv_qemu_process_done(&m->process);
        m->state = QEMU_NONE;
}

static void drop_held(QemuMachine *m)
{
        for (size_t i = 0; i < m->n_held; i++) {
                free(m->held[i].name);
                safe_close(m->held[i].fd);
        }
        free(m->held);
        m->held = NULL;
        m->n_held = 0;
}

static void drop_channels(QemuMachine *m)
{
        _cleanup_free_ char *path = path_of(m, "main.sock");

        if (path && m->main_fd >= 0)
                (void) unlink(path);
        m->main_fd = safe_close(m->main_fd);
        m->cpr_fd = safe_close(m->cpr_fd);
        luv_cpr_state_done(&m->cpr);
}

static void drop_capture(QemuMachine *m)
{
        m->document = luv_qemu_document_free(m->document);
        m->document_fd = safe_close(m->document_fd);
        m->stream_fd = safe_close(m->stream_fd);
}

QemuMachine *luv_qemu_machine_free(QemuMachine *m)
{
        if (!m)
                return NULL;
        release_qemu(m);
        drop_channels(m);
        drop_capture(m);
        drop_held(m);
        sd_event_source_disable_unref(m->stop_source);
        luvfio_unref(m->l);
        free(m);
        return NULL;
}

static uint64_t deadline_of(const struct luvfio_event *event, uint64_t usec)
{
        return luv_now_usec() + MIN(event->remaining_usec, usec);
}

/* Files. */

static int hold(QemuMachine *m, const char *name, FdKind kind, int *fd)
{
        _cleanup_free_ char *copy = strdup(name);
        QemuHeld *held = reallocarray(m->held, m->n_held + 1, sizeof(QemuHeld));

        if (held)
                m->held = held;
        if (!held || !copy)
                return -ENOMEM;
        m->held[m->n_held++] = (QemuHeld) { .name = TAKE_PTR(copy), .kind = kind, .fd = TAKE_FD(*fd) };
        return 0;
}

static const QemuHeld *find_same(const QemuMachine *m, int fd)
{
        for (size_t i = 0; i < m->n_held; i++)
                if (luv_fd_same(m->held[i].fd, fd) > 0)
                        return &m->held[i];
        return NULL;
}

static enum luvfio_kind kind_for_luvfiod(FdKind k)
{
        return k == FD_KIND_MEMFD     ? LUVFIO_KIND_MEMFD
               : k == FD_KIND_IOMMUFD ? LUVFIO_KIND_IOMMUFD
                                      : LUVFIO_KIND_VFIO;
}

/* Hands one over that is new. Takes FD if it is. */
static int hand_over(QemuMachine *m, FdKind kind, int *fd)
{
        _cleanup_free_ char *name = NULL;
        int r;

        if (find_same(m, *fd))
                return 0;
        name = luv_strf("%s%llu", luv_fd_kind_to_string(kind), (unsigned long long) ++m->last_file);
        if (!name)
                return -ENOMEM;
        r = luvfio_preserve(m->l, name, kind_for_luvfiod(kind), *fd, NULL);
        return r < 0 ? r : hold(m, name, kind, fd);
}

/* Memory first, then iommufds, then devices: what becomes of one depends on those before it. */
static int hand_over_all(QemuMachine *m, QemuFiles *files)
{
        static const FdKind order[] = { FD_KIND_MEMFD, FD_KIND_IOMMUFD, FD_KIND_VFIO };
        int r = 0;

        for (size_t k = 0; k < ELEMENTSOF(order); k++)
                for (size_t i = 0; i < files->n && r >= 0; i++)
                        if (files->items[i].identity.kind == order[k])
                                r = hand_over(m, order[k], &files->items[i].fd);
        return r;
}

/* What speaks against an update. */

static int check_outcomes(QemuMachine *m, Blockers *b)
{
        int r = 0;

        for (size_t i = 0; i < m->n_held && r >= 0; i++) {
                const struct luvfio_fd *f = luvfio_find_fd(m->l, m->held[i].name);

                if (f && f->outcome != LUVFIO_OUTCOME_PRESERVED)
                        r = luv_blockers_add(
                                        b,
                                        "See what else is found of it; or boot a kernel that preserves it.",
                                        "%s%s would not be preserved as it is now (but %s), and QEMU cannot "
                                        "do without",
                                        f->device ? "device " : "its ",
                                        f->device ? f->device : luvfio_kind_to_string(f->kind),
                                        luvfio_outcome_to_string(f->outcome));
        }
        return r;
}

/* What luvfiod knows of a machine by names of an earlier run is of no use to this one. */
static int register_anew(QemuMachine *m)
{
        int r;

        if (luvfio_get_state(m->l) != LUVFIO_STATE_RUNNING || !luvfio_list_fds(m->l, 0) || m->n_held > 0)
                return 0;
        r = luvfio_withdraw(m->l);
        return r < 0 ? r : luvfio_register(m->l);
}

/* Looks at all of it again, and tells luvfiod. 1: there are blockers. */
static int check(QemuMachine *m)
{
        _cleanup_(luv_qemu_files_done) QemuFiles files = {};
        _cleanup_(luv_blockers_done) Blockers b = {};
        int r;

        r = register_anew(m);
        if (r < 0)
                return luv_log_error(r, "%s", luvfio_get_error(m->l));
        r = luv_qemu_process_files(&m->process, &files);
        if (r < 0)
                return luv_log_error(r, "Cannot look at the files of QEMU (pid %i)", (int) m->process.pid);
        r = hand_over_all(m, &files);
        if (r < 0) {
                luv_log_warning("%s", luvfio_get_error(m->l));
                r = luv_blockers_add(&b, NULL, "%s", luvfio_get_error(m->l));
        }
        if (r >= 0)
                r = luv_qemu_check(m->qmp, &m->process, &files, luv_now_usec() + CALL_USEC, &b);
        if (r >= 0)
                r = check_outcomes(m, &b);
        if (r < 0)
                return luv_log_error(r, "Cannot check QEMU (pid %i)", (int) m->process.pid);
        r = luvfio_set_blockers(m->l, b.items, b.n);
        if (r < 0)
                luv_log_warning("%s", luvfio_get_error(m->l));
        for (size_t i = 0; i < b.n; i++)
                luv_log(LOG_NOTICE, "It could not take part in a live update: %s", b.items[i].message);
        return b.n > 0;
}

/* This update is over, for that reason; `abort` follows. */
static void give_up(QemuMachine *m, const char *reason)
{
        luv_log(LOG_WARNING, "Not in this update: %s", reason);
        if (luvfio_set_blockers(m->l, &(struct luvfio_blocker) { .message = reason }, 1) < 0)
                luv_log_warning("%s", luvfio_get_error(m->l));
}

/* prepare */

static int begin_migration(QemuMachine *m, const char *cpr_path, const char *main_path, uint64_t deadline,
                           char **ret_reason)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL;
        int r;

        r = sd_json_buildo(&v,
                           SD_JSON_BUILD_PAIR("capabilities",
                                              SD_JSON_BUILD_ARRAY(SD_JSON_BUILD_OBJECT(
                                                              SD_JSON_BUILD_PAIR_STRING("capability",
                                                                                        "events"),
                                                              SD_JSON_BUILD_PAIR_BOOLEAN("state", true)))));
        if (r >= 0)
                r = luv_qmp_call(m->qmp, "migrate-set-capabilities", TAKE_PTR(v), deadline, NULL,
                                 ret_reason);
        if (r >= 0)
                r = sd_json_buildo(&v, SD_JSON_BUILD_PAIR_STRING("mode", "cpr-transfer"));
        if (r >= 0)
                r = luv_qmp_call(m->qmp, "migrate-set-parameters", TAKE_PTR(v), deadline, NULL, ret_reason);
#define CHANNEL(type, path)                                                                                 \
        SD_JSON_BUILD_OBJECT(                                                                               \
                        SD_JSON_BUILD_PAIR_STRING("channel-type", type),                                    \
                        SD_JSON_BUILD_PAIR("addr",                                                          \
                                           SD_JSON_BUILD_OBJECT(SD_JSON_BUILD_PAIR_STRING("transport",      \
                                                                                          "socket"),        \
                                                                SD_JSON_BUILD_PAIR_STRING("type", "unix"),  \
                                                                SD_JSON_BUILD_PAIR_STRING("path", path))))
        if (r >= 0)
                r = sd_json_buildo(&v, SD_JSON_BUILD_PAIR("channels",
                                                          SD_JSON_BUILD_ARRAY(CHANNEL("main", main_path),
                                                                              CHANNEL("cpr", cpr_path))));
#undef CHANNEL
        if (r >= 0)
                r = luv_qmp_begin(m->qmp, "migrate", TAKE_PTR(v), deadline, ret_reason);
        return r;
}

static int accept_one(int listen_fd)
{
        int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);

        return fd < 0 ? negative_errno() : fd;
}

/* 1: somebody has connected to FD; 0: QEMU has something to say first. */
static int wait_connection(const QemuMachine *m, int fd, uint64_t deadline)
{
        struct pollfd p[] = { { .fd = fd, .events = POLLIN },
                              { .fd = luv_qmp_get_fd(m->qmp), .events = POLLIN } };
        uint64_t left = luv_usec_left(deadline);

        if (left == 0)
                return -ETIMEDOUT;
        if (poll(p, ELEMENTSOF(p), (int) MIN(left / USEC_PER_MSEC + 1, (uint64_t) INT32_MAX)) < 0)
                return errno == EINTR ? 0 : negative_errno();
        return p[0].revents != 0;
}

/* QEMU does not answer before it has sent everything, which may be more than fits into the socket. */
static int receive_cpr(QemuMachine *m, int listen_fd, uint64_t deadline, char **ret_reason)
{
        bool answered = false;
        int r;

        while ((r = wait_connection(m, listen_fd, deadline)) == 0) {
                r = luv_qmp_try_end(m->qmp, "migrate", NULL, ret_reason);
                if (r < 0)
                        return r;
                answered = answered || r > 0;
        }
        if (r < 0)
                return luv_reason(ret_reason, r, "QEMU does not hand its files over: %s", strerror(-r));
        m->cpr_fd = accept_one(listen_fd);
        if (m->cpr_fd < 0)
                return luv_reason(ret_reason, m->cpr_fd, "QEMU does not hand its files over: %s",
                                  strerror(-m->cpr_fd));
        r = luv_cpr_receive(m->cpr_fd, deadline, &m->cpr, ret_reason);
        if (r >= 0 && !answered)
                r = luv_qmp_end(m->qmp, "migrate", deadline, NULL, ret_reason);
        return r;
}

static bool is_eventfd(int fd)
{
        _cleanup_free_ char *path = luv_strf("/proc/self/fd/%i", fd);
        char link[64] = {};

        return path && readlink(path, link, sizeof(link) - 1) > 0 && streq(link, "anon_inode:[eventfd]");
}

/* Each file is one that luvfiod holds by now, or an eventfd. */
static int hold_cpr_files(QemuMachine *m, char **ret_reason)
{
        for (size_t i = 0; i < m->cpr.n_fds; i++) {
                const CprFd *f = &m->cpr.fds[i];
                _cleanup_free_ char *why = NULL;
                _cleanup_close_ int fd = -EBADF;
                FdIdentity identity;
                int r;

                if (find_same(m, f->fd) || is_eventfd(f->fd))
                        continue;
                r = luv_fd_identify(f->fd, false, &identity, &why);
                if (r < 0)
                        return luv_reason(ret_reason, r, "QEMU's file \"%s\" %s", f->name,
                                          why ? why : strerror(-r));
                fd = fcntl(f->fd, F_DUPFD_CLOEXEC, 3);
                r = fd < 0 ? negative_errno() : hand_over(m, identity.kind, &fd);
                if (r < 0)
                        return luv_reason(ret_reason, r, "%s", luvfio_get_error(m->l));
        }
        return 0;
}

static int prepare(QemuMachine *m, uint64_t deadline, char **ret_reason)
{
        _cleanup_free_ char *cpr_path = path_of(m, "cpr.sock"), *main_path = path_of(m, "main.sock");
        _cleanup_close_ int listen_fd = -EBADF;
        int r;

        if (!cpr_path || !main_path)
                return -ENOMEM;
        listen_fd = luv_qemu_listen(cpr_path);
        m->main_fd = luv_qemu_listen(main_path);
        if (listen_fd < 0 || m->main_fd < 0)
                return luv_reason(ret_reason, MIN(listen_fd, m->main_fd), "no sockets in %s",
                                  m->config.runtime_dir);
        r = begin_migration(m, cpr_path, main_path, deadline, ret_reason);
        if (r < 0)
                return r;
        m->state = QEMU_HELD;
        r = receive_cpr(m, listen_fd, deadline, ret_reason);
        (void) unlink(cpr_path);
        return r < 0 ? r : hold_cpr_files(m, ret_reason);
}

/* From state held back to running. The vCPUs have never stopped. */
static void let_go(QemuMachine *m)
{
        _cleanup_free_ char *reason = NULL;

        if (m->state != QEMU_HELD)
                return;
        /* Before the channel is closed, which is what QEMU waits for. */
        if (luv_qmp_call(m->qmp, "migrate_cancel", NULL, luv_now_usec() + CALL_USEC, NULL, &reason) < 0)
                luv_log_warning("%s", reason ? reason : "QEMU cannot be told that it stays");
        drop_channels(m);
        m->state = QEMU_RUNNING;
}

static void on_prepare(struct luvfio *l, const struct luvfio_event *event, void *userdata)
{
        _cleanup_free_ char *reason = NULL;
        QemuMachine *m = userdata;
        int r;

        let_go(m);
        /* What is found there ends the update. */
        if (m->state != QEMU_RUNNING || check(m) != 0)
                return;
        r = prepare(m, deadline_of(event, START_USEC), &reason);
        if (r < 0) {
                give_up(m, reason ? reason : strerror(-r));
                return;
        }
        if (luvfio_prepared(l) < 0)
                luv_log_warning("%s", luvfio_get_error(l));
}

/* quiesce */

static int receive_stream(int fd, uint64_t deadline, uint64_t *ret_size)
{
        _cleanup_close_ int memfd = memfd_create("luvfio-qemu-stream", MFD_CLOEXEC | MFD_NOEXEC_SEAL);
        _cleanup_free_ uint8_t *buffer = malloc(1 << 20);
        uint64_t size = 0;

        if (memfd < 0)
                return negative_errno();
        if (!buffer)
                return -ENOMEM;
        for (;;) {
                struct pollfd p = { .fd = fd, .events = POLLIN };
                uint64_t left = luv_usec_left(deadline);
                ssize_t n;
                int r;

                if (left == 0)
                        return -ETIMEDOUT;
                if (poll(&p, 1, (int) MIN(left / USEC_PER_MSEC + 1, (uint64_t) INT32_MAX)) < 0)
                        return negative_errno();
                n = recv(fd, buffer, 1 << 20, MSG_DONTWAIT);
                if (n < 0 && errno != EAGAIN && errno != EINTR)
                        return negative_errno();
                if (n == 0) {
                        *ret_size = size;
                        return TAKE_FD(memfd);
                }
                if (n < 0)
                        continue;
                size += (uint64_t) n;
                if (size > STREAM_SIZE_MAX)
                        return -EFBIG;
                for (ssize_t done = 0; done < n; done += r) {
                        r = (int) write(memfd, buffer + done, (size_t) (n - done));
                        if (r < 0)
                                return negative_errno();
                }
        }
}

static int migration_status(QemuMachine *m, uint64_t deadline, char **ret_reason)
{
        for (;;) {
                _cleanup_(sd_json_variant_unrefp) sd_json_variant *data = NULL, *info = NULL;
                sd_json_variant *status, *why = NULL;
                int r;

                r = luv_qmp_wait_event(m->qmp, "MIGRATION", deadline, &data);
                if (r < 0)
                        return luv_reason(ret_reason, r,
                                          "QEMU does not say that it has handed itself over: %s",
                                          strerror(-r));
                status = data ? sd_json_variant_by_key(data, "status") : NULL;
                if (!status || !sd_json_variant_is_string(status))
                        continue;
                if (streq(sd_json_variant_string(status), "completed"))
                        return 0;
                if (!streq(sd_json_variant_string(status), "failed"))
                        continue;
                if (luv_qmp_call(m->qmp, "query-migrate", NULL, deadline, &info, NULL) >= 0)
                        why = sd_json_variant_by_key(info, "error-desc");
                return luv_reason(ret_reason, -EREMOTEIO, "QEMU has not handed itself over: %s",
                                  why && sd_json_variant_is_string(why) ? sd_json_variant_string(why)
                                                                        : "it does not say why");
        }
}

/* Closing the channel is what QEMU waits for: it stops its vCPUs and sends its state on the other one. */
static int receive_state(QemuMachine *m, uint64_t deadline, char **ret_reason)
{
        _cleanup_close_ int fd = -EBADF;
        uint64_t size = 0;
        int r;

        m->cpr_fd = safe_close(m->cpr_fd);
        while ((r = wait_connection(m, m->main_fd, deadline)) == 0) {
                r = luv_qmp_process(m->qmp);
                if (r < 0)
                        break;
        }
        if (r >= 0) {
                fd = accept_one(m->main_fd);
                r = fd < 0 ? fd : receive_stream(fd, deadline, &size);
        }
        if (r < 0)
                return luv_reason(ret_reason, r, "QEMU does not send its state: %s", strerror(-r));
        m->stream_fd = r;
        m->document->stream_size = size;
        return migration_status(m, deadline, ret_reason);
}

static uint64_t eventfd_count(int fd)
{
        eventfd_t n;

        return eventfd_read(fd, &n) < 0 ? 0 : n;
}

/* Which of two eventfds the kernel signals when the vector's interrupt comes. Nobody else reads them. */
static const CprFd *find_wired(int device_fd, VfioIrq type, unsigned vector, const CprFd *a, const CprFd *b)
{
        if (!a || !b)
                return a ? a : b;
        (void) eventfd_count(a->fd);
        (void) eventfd_count(b->fd);
        if (luv_vfio_irq_raise(device_fd, type, vector) < 0)
                return a;
        return eventfd_count(a->fd) == 0 && eventfd_count(b->fd) > 0 ? b : a;
}

static int add_eventfd(QemuMachine *m, const char *device, const char *suffix, int32_t id, uint64_t initial,
                       VfioIrq irq, unsigned vector)
{
        _cleanup_free_ char *name = luv_strf("%s_%s", device, suffix);

        if (!name)
                return -ENOMEM;
        return luv_qemu_document_add_eventfd(m->document,
                                             &(QemuEventfd) { .name = name,
                                                              .id = id,
                                                              .initial = initial,
                                                              .device = irq < 0 ? NULL : (char *) device,
                                                              .irq = irq,
                                                              .vector = vector });
}

/*
 * A vector has two eventfds: one that KVM turns into an interrupt by itself, and one for QEMU, which it uses
 * while the guest has the vector masked. One that the guest has enabled after QEMU handed over has none.
 */
static int add_vector(QemuMachine *m, const char *device, int device_fd, VfioIrq type, unsigned vector)
{
        _cleanup_free_ char *kvm_name = luv_strf("%s_kvm_interrupt", device),
                            *name = luv_strf("%s_interrupt", device);
        const CprFd *kvm, *user, *wired;
        int r = 0;

        if (!kvm_name || !name)
                return -ENOMEM;
        kvm = luv_cpr_find_fd(&m->cpr, kvm_name, (int32_t) vector);
        user = luv_cpr_find_fd(&m->cpr, name, (int32_t) vector);
        wired = find_wired(device_fd, type, vector, kvm, user);
        if (user || !wired)
                r = add_eventfd(m, device, "interrupt", (int32_t) vector, wired && wired == user,
                                wired && wired == user ? type : _VFIO_IRQ_INVALID, vector);
        if (r >= 0 && (kvm || !wired))
                r = add_eventfd(m, device, "kvm_interrupt", (int32_t) vector, wired == kvm,
                                wired == kvm ? type : _VFIO_IRQ_INVALID, vector);
        return r;
}

static int add_single(QemuMachine *m, const char *device, const char *suffix, uint64_t initial, VfioIrq irq)
{
        _cleanup_free_ char *name = luv_strf("%s_%s", device, suffix);

        if (!name)
                return -ENOMEM;
        return luv_cpr_find_fd(&m->cpr, name, 0) ? add_eventfd(m, device, suffix, 0, initial, irq, 0) : 0;
}

/* What is wired is wired again. Interrupts that come meanwhile may be lost, so each vector begins with one.
 */
static int add_interrupts(QemuMachine *m, const char *device, const char *address, int device_fd,
                          char **ret_reason)
{
        _cleanup_free_ VfioWired *wired = malloc(sizeof(VfioWired));
        uint64_t preserved;
        int r;

        if (!wired)
                return -ENOMEM;
        r = luv_vfio_wired_read(address, wired);
        if (r < 0)
                return r;
        if (wired->type == VFIO_IRQ_INTX) {
                r = add_single(m, device, "intx-interrupt", 1, VFIO_IRQ_INTX);
                if (r >= 0)
                        r = add_single(m, device, "intx-unmask", 0, VFIO_IRQ_UNMASK);
        } else
                for (size_t i = 0; i < wired->n && r >= 0; i++)
                        if (wired->vectors[i])
                                r = add_vector(m, device, device_fd, wired->type, (unsigned) i);
        if (r >= 0)
                r = add_single(m, device, "err_notifier", 0, VFIO_IRQ_ERR);
        if (r >= 0)
                r = add_single(m, device, "req_notifier", 0, VFIO_IRQ_REQ);
        if (r < 0)
                return r;
        preserved = luv_fd_preserved(device_fd);
        /* Those that are held back by the device stay on. */
        if (wired->type < 0 ||
            (preserved != FD_PRESERVED_UNKNOWN && (preserved & LUVFIO_PRESERVED_INTERRUPTS)))
                return 0;
        r = luv_vfio_irq_off(device_fd, wired->type);
        if (r < 0)
                return luv_reason(ret_reason, r, "interrupts of device %s cannot be turned off: %s", address,
                                  strerror(-r));
        return 0;
}

static int add_device(QemuMachine *m, const CprDevice *x, char **ret_reason)
{
        const CprFd *f = luv_cpr_find_fd(&m->cpr, x->name, 0);
        FdIdentity identity;
        int r;

        if (!f || luv_fd_identify(f->fd, false, &identity, NULL) < 0 || identity.kind != FD_KIND_VFIO)
                return luv_reason(ret_reason, -EBADMSG, "QEMU hands over no file of its device \"%s\"",
                                  x->name);
        r = luv_qemu_document_add_device(m->document, &(QemuDevice) { .name = x->name,
                                                                      .address = identity.device,
                                                                      .devid = (uint64_t) x->devid,
                                                                      .ioas = x->ioas,
                                                                      .hwpt = x->hwpt });
        return r < 0 ? r : add_interrupts(m, x->name, identity.device, f->fd, ret_reason);
}

static bool is_described(const QemuDocument *d, const CprFd *f)
{
        for (size_t i = 0; i < d->n_eventfds; i++)
                if (d->eventfds[i].id == f->id && streq(d->eventfds[i].name, f->name))
                        return true;
        return false;
}

static int describe(QemuMachine *m, char **ret_reason)
{
        int r = 0;

        for (size_t i = 0; i < m->cpr.n_devices && r >= 0; i++)
                r = add_device(m, &m->cpr.devices[i], ret_reason);
        for (size_t i = 0; i < m->cpr.n_fds && r >= 0; i++) {
                CprFd *f = &m->cpr.fds[i];
                const QemuHeld *h = find_same(m, f->fd);

                if (h)
                        r = luv_qemu_document_add_preserved(m->document,
                                                            &(QemuPreserved) { .name = f->name,
                                                                               .id = f->id,
                                                                               .file = h->name });
                else if (!is_described(m->document, f))
                        r = luv_qemu_document_add_eventfd(m->document,
                                                          &(QemuEventfd) { .name = f->name,
                                                                           .id = f->id,
                                                                           .irq = _VFIO_IRQ_INVALID });
        }
        return r;
}

/* What can be asked while it runs. */
static int begin_document(QemuMachine *m, uint64_t deadline, char **ret_reason)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *status = NULL;
        sd_json_variant *running;
        QemuDocument *d;
        int r;

        drop_capture(m);
        d = m->document = calloc(1, sizeof(QemuDocument));
        if (!d)
                return -ENOMEM;
        r = luv_free_and_strdup(&d->version, luv_qmp_get_version(m->qmp));
        if (r >= 0)
                r = luv_free_and_strdup(&d->cwd, m->process.cwd);
        if (r >= 0)
                r = luv_strv_copy(m->process.argv, &d->argv);
        if (r >= 0)
                r = luv_qemu_machine_type(m->qmp, deadline, &d->machine_type, ret_reason);
        if (r >= 0)
                r = luv_qmp_call(m->qmp, "query-status", NULL, deadline, &status, ret_reason);
        if (r < 0)
                return r;
        running = sd_json_variant_by_key(status, "running");
        d->running = running && sd_json_variant_is_boolean(running) && sd_json_variant_boolean(running);
        return 0;
}

/* For the next run of this program, if this one is killed: the service manager keeps them. */
static void store(const char *name, int fd)
{
        _cleanup_free_ char *text = luv_strf("FDSTORE=1\nFDNAME=%s\nFDPOLL=0", name);

        if (text)
                (void) sd_pid_notify_with_fds(0, 0, text, &fd, 1);
}

static void unstore(const char *name)
{
        _cleanup_free_ char *text = luv_strf("FDSTOREREMOVE=1\nFDNAME=%s", name);

        if (text)
                (void) sd_notify(0, text);
}

static void store_capture(QemuMachine *m)
{
        for (size_t i = 0; i < m->n_held; i++)
                store(m->held[i].name, m->held[i].fd);
        store(QEMU_STREAM, m->stream_fd);
        /* The one that says that all are there. */
        store(QEMU_DOCUMENT, m->document_fd);
}

static void unstore_capture(QemuMachine *m)
{
        unstore(QEMU_DOCUMENT);
        unstore(QEMU_STREAM);
        for (size_t i = 0; i < m->n_held; i++)
                unstore(m->held[i].name);
}

static int quiesce(QemuMachine *m, uint64_t deadline, char **ret_reason)
{
        int r;

        r = receive_state(m, deadline, ret_reason);
        if (r < 0)
                return r;
        m->state = QEMU_CAPTURED;
        (void) luv_qemu_process_signal(&m->process, SIGSTOP);
        r = describe(m, ret_reason);
        if (r >= 0)
                r = luv_qemu_document_write(m->document, &m->document_fd, ret_reason);
        if (r < 0)
                return r;
        store_capture(m);
        r = luvfio_preserve(m->l, QEMU_STREAM, LUVFIO_KIND_STATE, m->stream_fd, NULL);
        if (r >= 0)
                r = luvfio_preserve(m->l, QEMU_DOCUMENT, LUVFIO_KIND_STATE, m->document_fd, NULL);
        return r < 0 ? luv_reason(ret_reason, r, "%s", luvfio_get_error(m->l)) : 0;
}

static void on_quiesce(struct luvfio *l, const struct luvfio_event *event, void *userdata)
{
        uint64_t deadline = deadline_of(event, START_USEC), stopped;
        _cleanup_free_ char *reason = NULL;
        QemuMachine *m = userdata;
        int r;

        if (m->state != QEMU_HELD)
                return;
        r = begin_document(m, deadline, &reason);
        stopped = luvfio_now();
        if (r >= 0)
                r = quiesce(m, deadline, &reason);
        if (r < 0) {
                give_up(m, reason ? reason : strerror(-r));
                return;
        }
        if (luvfio_quiesced(l, stopped) < 0)
                luv_log_warning("%s", luvfio_get_error(l));
}

static void on_commit(struct luvfio *l, const struct luvfio_event *event, void *userdata)
{
        if (luvfio_committed(l) < 0)
                luv_log_warning("%s", luvfio_get_error(l));
}

/* Going on. */

static int replay(QemuMachine *m, uint64_t deadline, char **ret_reason)
{
        _cleanup_free_ char *path = NULL;
        int r;

        if (m->process.pid > 0)
                (void) luv_qemu_process_kill(&m->process, deadline);
        release_qemu(m);
        drop_channels(m);
        r = luv_qemu_replay(&(QemuReplay) { .document = m->document,
                                            .stream_fd = m->stream_fd,
                                            .held = m->held,
                                            .n_held = m->n_held,
                                            .runtime_dir = m->config.runtime_dir,
                                            .deadline = deadline },
                            &m->process, &m->qmp, ret_reason);
        if (r < 0)
                return r;
        path = path_of(m, "qmp.sock");
        return path ? adopt(m, path) : -ENOMEM;
}

static void resumed(QemuMachine *m, uint64_t running_usec)
{
        if (luvfio_resumed(m->l, running_usec) < 0)
                luv_log_warning("%s", luvfio_get_error(m->l));
        unstore_capture(m);
        drop_capture(m);
}

/* The machine is lost to this process; the next one tries again with what is kept. */
static void fail(QemuMachine *m, int error, const char *reason)
{
        luv_log_error(error, "Machine %s does not run: %s", m->config.name, reason ? reason : "");
        (void) sd_event_exit(m->config.event, EXIT_FAILURE);
}

static void stop_now(QemuMachine *m);

static void on_abort(struct luvfio *l, const struct luvfio_event *event, void *userdata)
{
        _cleanup_free_ char *reason = NULL;
        QemuMachine *m = userdata;
        int r;

        if (event->reason)
                luv_log(LOG_NOTICE, "The update is given up: %s", event->reason);
        let_go(m);
        if (m->state == QEMU_CAPTURED) {
                r = replay(m, luv_now_usec() + REPLAY_USEC, &reason);
                if (r < 0) {
                        fail(m, r, reason);
                        return;
                }
        }
        if (m->state != QEMU_RUNNING)
                return;
        resumed(m, luvfio_now());
        (void) check(m);
        if (m->stop)
                stop_now(m);
}

static int retrieve(QemuMachine *m, const char *name)
{
        int fd = luvfio_retrieve(m->l, name, NULL);

        if (fd < 0)
                luv_log_warning("%s", luvfio_get_error(m->l));
        return fd;
}

/* All that luvfiod has. Memory comes first in its list. */
static int retrieve_all(QemuMachine *m)
{
        _cleanup_strv_ char **names = NULL;
        const struct luvfio_fd *f;
        int r = 0;

        for (size_t i = 0; (f = luvfio_list_fds(m->l, i)) && r >= 0; i++)
                if (f->kind != LUVFIO_KIND_STATE)
                        r = luv_strv_extend(&names, f->name);
        for (char **name = names; name && *name && r >= 0; name++) {
                _cleanup_close_ int fd = -EBADF;
                FdIdentity identity;
                uint64_t number;

                fd = retrieve(m, *name);
                r = fd < 0 ? fd : luv_fd_identify(fd, false, &identity, NULL);
                if (r >= 0)
                        r = hold(m, *name, identity.kind, &fd);
                if (luv_parse_u64(*name + strcspn(*name, "0123456789"), &number) >= 0)
                        m->last_file = MAX(m->last_file, number);
        }
        return r;
}

static int take_in(QemuMachine *m, char **ret_reason)
{
        int r;

        drop_capture(m);
        drop_held(m);
        r = retrieve_all(m);
        if (r >= 0)
                r = m->stream_fd = retrieve(m, QEMU_STREAM);
        if (r >= 0)
                r = m->document_fd = retrieve(m, QEMU_DOCUMENT);
        if (r < 0)
                return luv_reason(ret_reason, r, "%s", luvfio_get_error(m->l));
        r = luv_qemu_document_read(m->document_fd, &m->document, ret_reason);
        return r < 0 ? r : replay(m, luv_now_usec() + REPLAY_USEC, ret_reason);
}

static void on_resume(struct luvfio *l, const struct luvfio_event *event, void *userdata)
{
        _cleanup_free_ char *reason = NULL;
        QemuMachine *m = userdata;
        int r;

        if (m->state != QEMU_RUNNING) {
                r = take_in(m, &reason);
                if (r < 0) {
                        fail(m, r, reason);
                        return;
                }
        }
        resumed(m, luvfio_now());
}

static void on_finished(struct luvfio *l, const struct luvfio_event *event, void *userdata)
{
        QemuMachine *m = userdata;

        if (m->state == QEMU_RUNNING)
                (void) check(m);
        if (m->stop)
                stop_now(m);
}

/* A luvfiod that was started anew has forgotten what was handed over. */
static void on_attached(struct luvfio *l, const struct luvfio_event *event, void *userdata)
{
        QemuMachine *m = userdata;

        if (event->state != LUVFIO_STATE_RUNNING || m->state != QEMU_RUNNING)
                return;
        for (size_t i = 0; i < m->n_held; i++)
                if (!luvfio_find_fd(l, m->held[i].name) &&
                    luvfio_preserve(l, m->held[i].name, kind_for_luvfiod(m->held[i].kind), m->held[i].fd,
                                    NULL) < 0)
                        luv_log_warning("%s", luvfio_get_error(l));
        (void) check(m);
}

static void on_lost(struct luvfio *l, const char *reason, void *userdata)
{
        luv_log_warning("luvfiod: %s", reason);
}

/* QEMU's end. */

static int on_process_end(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
        QemuMachine *m = userdata;
        siginfo_t info = {};
        int code = EXIT_SUCCESS;

        m->process_source = sd_event_source_disable_unref(m->process_source);
        /* It is of no use any more anyhow. */
        if (m->state == QEMU_CAPTURED)
                return 0;
        if (waitid(P_PIDFD, (id_t) m->process.pidfd, &info, WEXITED) >= 0 && info.si_pid > 0) {
                code = info.si_code == CLD_EXITED && info.si_status == 0 ? EXIT_SUCCESS
                                                                         : QEMU_MACHINE_FAILED;
                luv_log(code == EXIT_SUCCESS ? LOG_INFO : LOG_WARNING, "QEMU (pid %i) has ended, %s %i",
                        (int) info.si_pid, info.si_code == CLD_EXITED ? "exit code" : "signal",
                        info.si_status);
        } else
                luv_log_info("QEMU (pid %i) has ended", (int) m->process.pid);
        release_qemu(m);
        drop_channels(m);
        drop_held(m);
        if (luvfio_withdraw(m->l) < 0)
                luv_log_info("%s", luvfio_get_error(m->l));
        return sd_event_exit(m->config.event, code);
}

static int on_monitor(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
        QemuMachine *m = userdata;
        int r;

        r = luv_qmp_process(m->qmp);
        /* The end of its process tells the rest. */
        if (r < 0)
                m->qmp_source = sd_event_source_disable_unref(m->qmp_source);
        for (;;) {
                _cleanup_free_ char *name = NULL;

                if (luv_qmp_take_event(m->qmp, &name, NULL) <= 0)
                        return 0;
                if (streq(name, "DEVICE_DELETED") && m->state == QEMU_RUNNING && r >= 0)
                        (void) check(m);
        }
}

static int on_stop_deadline(sd_event_source *s, uint64_t usec, void *userdata)
{
        QemuMachine *m = userdata;

        luv_log_warning("The guest has not powered itself off in time");
        if (luv_qmp_call(m->qmp, "quit", NULL, luv_now_usec() + CALL_USEC, NULL, NULL) < 0)
                (void) luv_qemu_process_signal(&m->process, SIGKILL);
        return 0;
}

static void stop_now(QemuMachine *m)
{
        int r;

        if (m->stop_source)
                return;
        r = sd_event_add_time_relative(m->config.event, &m->stop_source, CLOCK_BOOTTIME, m->config.stop_usec,
                                       0, on_stop_deadline, m);
        if (r < 0 ||
            luv_qmp_call(m->qmp, "system_powerdown", NULL, luv_now_usec() + CALL_USEC, NULL, NULL) < 0)
                (void) luv_qemu_process_signal(&m->process, SIGTERM);
}

void luv_qemu_machine_stop(QemuMachine *m)
{
        m->stop = true;
        if (m->state == QEMU_RUNNING)
                stop_now(m);
        else if (m->state == QEMU_NONE)
                (void) sd_event_exit(m->config.event, EXIT_SUCCESS);
}

/* So that the next run of this program finds QEMU: its pid, when it was started, where its monitor is. */
static int write_note(const QemuMachine *m, const char *monitor)
{
        _cleanup_free_ char *path = path_of(m, "qemu"), *text = NULL;
        uint64_t start;
        int r;

        r = luv_process_start_time(m->process.pid, &start);
        if (r < 0)
                return r;
        text = luv_strf("%i %llu %s\n", (int) m->process.pid, (unsigned long long) start, monitor);
        return path && text ? luv_write_file_atomic(AT_FDCWD, path, text, strlen(text), 0600) : -ENOMEM;
}

/* A QEMU that runs: its process and its monitor are watched. */
static int adopt(QemuMachine *m, const char *monitor)
{
        int r;

        r = write_note(m, monitor);
        if (r < 0)
                luv_log_error(r, "QEMU (pid %i) cannot be noted in %s", (int) m->process.pid,
                              m->config.runtime_dir);
        r = sd_event_add_io(m->config.event, &m->process_source, m->process.pidfd, EPOLLIN, on_process_end,
                            m);
        if (r >= 0)
                r = sd_event_add_io(m->config.event, &m->qmp_source, luv_qmp_get_fd(m->qmp), EPOLLIN,
                                    on_monitor, m);
        if (r < 0)
                return r;
        m->state = QEMU_RUNNING;
        return 0;
}

/* Beginnings. */

static int start_new(QemuMachine *m, char **ret_reason)
{
        _cleanup_free_ char *path = path_of(m, "qmp.sock"), *cwd = getcwd(NULL, 0);
        int monitor_fd, r;

        if (!path || !cwd)
                return -ENOMEM;
        monitor_fd = luv_qemu_listen(path);
        if (monitor_fd < 0)
                return luv_reason(ret_reason, monitor_fd, "the socket %s cannot be made: %s", path,
                                  strerror(-monitor_fd));
        r = luv_qemu_start(&(QemuStart) { .argv = m->config.argv,
                                          .cwd = cwd,
                                          .monitor_fd = monitor_fd,
                                          .main_fd = -EBADF,
                                          .cpr_fd = -EBADF },
                           &m->process, ret_reason);
        safe_close(monitor_fd);
        if (r < 0)
                return -ECHILD;
        r = luv_qemu_monitor(path, luv_now_usec() + START_USEC, &m->qmp, ret_reason);
        if (r >= 0)
                return adopt(m, path);
        (void) luv_qemu_process_kill(&m->process, luv_now_usec() + CALL_USEC);
        return -ECHILD;
}

static int qemu_status(Qmp *q, char **ret, char **ret_reason)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL;
        sd_json_variant *status;
        int r;

        r = luv_qmp_call(q, "query-status", NULL, luv_now_usec() + CALL_USEC, &v, ret_reason);
        if (r < 0)
                return r;
        status = sd_json_variant_by_key(v, "status");
        *ret = strdup(status && sd_json_variant_is_string(status) ? sd_json_variant_string(status) : "");
        return *ret ? 0 : -ENOMEM;
}

static bool comes_in(const QemuMachine *m)
{
        int s = luvfio_get_state(m->l);

        return s == LUVFIO_STATE_RESTORING || s == LUVFIO_STATE_RESUMING || s == LUVFIO_STATE_STRANDED;
}

/* 1: one that an earlier run of this program has noted lives; *RET is where its monitor is. */
static int find_noted(QemuMachine *m, char **ret)
{
        _cleanup_free_ char *path = path_of(m, "qemu"), *line = NULL;
        unsigned long long start;
        uint64_t now;
        int pid, at = 0, r;

        if (!path)
                return -ENOMEM;
        r = luv_read_line_file(AT_FDCWD, path, &line);
        if (r < 0 || sscanf(line, "%i %llu %n", &pid, &start, &at) != 2 || at == 0 || pid <= 0)
                return r == -ENOMEM ? r : 0;
        r = luv_qemu_process_open(pid, &m->process);
        if (r < 0)
                return r == -ESRCH ? 0 : r;
        /* Or another process has its number by now. */
        if (luv_process_start_time(pid, &now) < 0 || now != start) {
                luv_qemu_process_done(&m->process);
                return 0;
        }
        *ret = strdup(line + at);
        return *ret ? 1 : -ENOMEM;
}

/* The one that its user has started by hand. */
static int find_named(QemuMachine *m, char **ret, char **ret_reason)
{
        _cleanup_close_ int fd = luv_qemu_connect(m->config.monitor);
        struct ucred peer = {};
        socklen_t n = sizeof(peer);
        int r;

        if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &n) < 0)
                return luv_reason(ret_reason, fd < 0 ? fd : negative_errno(), "no QEMU listens at %s: %s",
                                  m->config.monitor, strerror(fd < 0 ? -fd : errno));
        r = luv_qemu_process_open(peer.pid, &m->process);
        if (r >= 0)
                *ret = strdup(m->config.monitor);
        return r < 0 ? r : *ret ? 1 : -ENOMEM;
}

/*
 * A QEMU that is there already. 1: it runs; 0: there is none, or none that could run: one that has been
 * captured, or one that a machine was coming into.
 */
static int take_up(QemuMachine *m, char **ret_reason)
{
        uint64_t deadline = luv_now_usec() + CALL_USEC;
        _cleanup_free_ char *path = NULL, *status = NULL;
        int r;

        r = find_noted(m, &path);
        if (r == 0 && m->config.monitor && !comes_in(m))
                r = find_named(m, &path, ret_reason);
        if (r <= 0)
                return r;
        if (!luv_qemu_process_is_stopped(&m->process)) {
                r = luv_qemu_monitor(path, deadline, &m->qmp, ret_reason);
                if (r >= 0)
                        r = qemu_status(m->qmp, &status, ret_reason);
                if (r < 0)
                        return r;
        }
        if (!status || streq(status, "inmigrate") || streq(status, "postmigrate") ||
            streq(status, "finish-migrate")) {
                r = luv_qemu_process_kill(&m->process, deadline);
                release_qemu(m);
                return r;
        }
        luv_log_info("QEMU (pid %i) is taken up", (int) m->process.pid);
        r = adopt(m, path);
        return r < 0 ? r : 1;
}

/* What an earlier run of this program has captured and could not give back. 1: it is here. */
static int take_stored(QemuMachine *m)
{
        _cleanup_strv_ char **names = NULL;
        bool document = false;
        int n, r = 0;

        n = sd_listen_fds_with_names(1, &names);
        for (int i = 0; i < n && r >= 0; i++) {
                int fd = SD_LISTEN_FDS_START + i;
                FdIdentity identity;

                if (streq(names[i], QEMU_DOCUMENT) && m->document_fd < 0) {
                        m->document_fd = fd;
                        document = true;
                } else if (streq(names[i], QEMU_STREAM) && m->stream_fd < 0)
                        m->stream_fd = fd;
                else if (luv_fd_identify(fd, false, &identity, NULL) >= 0)
                        r = hold(m, names[i], identity.kind, &fd);
                else
                        safe_close(fd);
        }
        if (r < 0 || !document || m->stream_fd < 0)
                return MIN(r, 0);
        r = luv_qemu_document_read(m->document_fd, &m->document, NULL);
        return r < 0 ? r : 1;
}

static int begin(QemuMachine *m, char **ret_reason)
{
        int stored, r;

        stored = take_stored(m);
        if (stored < 0)
                return stored;
        r = take_up(m, ret_reason);
        if (r != 0)
                return MIN(r, 0);
        /* It is to be put together again: `resume` follows. */
        if (comes_in(m))
                return 0;
        /* Whatever luvfiod makes of the update, this machine has to go on. */
        if (stored > 0)
                return replay(m, luv_now_usec() + REPLAY_USEC, ret_reason);
        if (!m->config.argv || !m->config.argv[0])
                return luv_reason(ret_reason, -ENOENT, "there is no QEMU, and no command line for one");
        return start_new(m, ret_reason);
}

static int connect_luvfiod(QemuMachine *m)
{
        static const struct luvfio_handlers handlers = {
                .size = sizeof(handlers),
                .attached = on_attached,
                .lost = on_lost,
                .prepare = on_prepare,
                .quiesce = on_quiesce,
                .commit = on_commit,
                .abort = on_abort,
                .resume = on_resume,
                .finished = on_finished,
        };
        int r;

        r = luvfio_new(&m->l, m->config.name);
        if (r < 0)
                return luv_log_error(r, "\"%s\" is no name for a machine", m->config.name);
        r = luvfio_set_handlers(m->l, &handlers, m);
        if (r >= 0)
                r = luvfio_set_vmm(m->l, "QEMU, by luvfio-qemu");
        if (r >= 0 && m->config.secret_file) {
                r = luvfio_load_secret(m->l, m->config.secret_file);
                if (r == -ENOENT)
                        r = 0;
        }
        if (r >= 0)
                r = luvfio_register(m->l);
        if (r >= 0 && m->config.secret_file)
                r = luvfio_save_secret(m->l, m->config.secret_file);
        return r < 0 ? luv_log_error(r, "%s", luvfio_get_error(m->l)) : 0;
}

int luv_qemu_machine_new(const QemuMachineConfig *config, QemuMachine **ret)
{
        _cleanup_(luv_qemu_machine_freep) QemuMachine *m = calloc(1, sizeof(QemuMachine));
        _cleanup_free_ char *reason = NULL;
        int r;

        if (!m)
                return -ENOMEM;
        m->config = *config;
        m->process = QEMU_PROCESS_NULL;
        m->main_fd = m->cpr_fd = m->document_fd = m->stream_fd = -EBADF;
        if (mkdir(config->runtime_dir, 0700) < 0 && errno != EEXIST)
                return luv_log_error(negative_errno(), "The folder %s cannot be made", config->runtime_dir);
        r = connect_luvfiod(m);
        if (r < 0)
                return r;
        r = begin(m, &reason);
        if (r < 0)
                return luv_log_error(r, "Machine %s cannot begin: %s", config->name, strempty(reason));
        if (m->state == QEMU_RUNNING) {
                unstore_capture(m);
                drop_capture(m);
                if (luvfio_get_state(m->l) == LUVFIO_STATE_RUNNING)
                        (void) check(m);
        }
        /* Events are waited for only now: what they are about is there. */
        r = luvfio_attach_event(m->l, config->event, 0);
        if (r < 0)
                return luv_log_error(r, "The event loop failed");
        *ret = TAKE_PTR(m);
        return 0;
}
