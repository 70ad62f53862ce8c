/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>

#include <luvfio/plugin.h>

#include "agents/qemu-check.h"
#include "agents/qemu-private.h"
#include "agents/vfio-irq.h"
#include "util/io.h"
#include "util/string-util.h"
#include "util/time-util.h"

#define SPLICE_SIZE ((size_t) 1 << 20)

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

                if (luv_qemu_find_same(m, f->fd) || is_eventfd(f->fd))
                        continue;
                r = luv_fd_identify(f->fd, false, &identity, &why);
                if (r < 0)
                        return luv_reason(ret_reason, r, "QEMU's file \"%s\" %s", f->name,
                                          why ? why : strerror(-r));
                fd = fcntl(f->fd, F_DUPFD_CLOEXEC, 3);
                r = fd < 0 ? negative_errno() : luv_qemu_hand_over(m, identity.kind, &fd);
                if (r < 0)
                        return luv_reason(ret_reason, r, "%s", luvfio_get_error(m->l));
        }
        return 0;
}

/* QEMU itself does not mind memory that it has in files. */
static int check_memory(QemuMachine *m, uint64_t deadline, char **ret_reason)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *list = NULL;
        int r;

        r = luv_qmp_call(m->qmp, "query-memdev", NULL, deadline, &list, ret_reason);
        if (r < 0)
                return r;
        for (size_t i = 0; i < sd_json_variant_elements(list); i++) {
                sd_json_variant *id = sd_json_variant_by_key(sd_json_variant_by_index(list, i), "id");

                if (!id || !sd_json_variant_is_string(id) ||
                    !luv_cpr_find_fd(&m->cpr, sd_json_variant_string(id), 0))
                        return luv_reason(ret_reason, -EOPNOTSUPP,
                                          "QEMU does not hand over its memory \"%s\"",
                                          id && sd_json_variant_is_string(id) ? sd_json_variant_string(id)
                                                                              : "?");
        }
        return 0;
}

/* QEMU may run as another user, and connects to them. */
static int give_sockets(const QemuMachine *m, const char *cpr_path, const char *main_path)
{
        _cleanup_free_ char *proc = luv_strf("/proc/%i", (int) m->process.pid);
        struct stat st;

        if (!proc)
                return -ENOMEM;
        if (stat(proc, &st) < 0)
                return negative_errno();
        if (st.st_uid == geteuid())
                return 0;
        return chown(m->config.runtime_dir, st.st_uid, st.st_gid) < 0 ||
                                               chown(cpr_path, st.st_uid, st.st_gid) < 0 ||
                                               chown(main_path, st.st_uid, st.st_gid) < 0
                               ? negative_errno()
                               : 0;
}

int luv_qemu_prepare(QemuMachine *m, uint64_t deadline, char **ret_reason)
{
        _cleanup_free_ char *cpr_path = luv_qemu_path(m, "cpr.sock"),
                            *main_path = luv_qemu_path(m, "main.sock");
        _cleanup_close_ int listen_fd = -EBADF;
        int r;

        if (!cpr_path || !main_path)
                return -ENOMEM;
        listen_fd = luv_qemu_listen(cpr_path);
        m->main_fd = luv_qemu_listen(main_path);
        if (listen_fd < 0 || m->main_fd < 0)
                return luv_reason(ret_reason, MIN(listen_fd, m->main_fd), "no sockets in %s",
                                  m->config.runtime_dir);
        r = give_sockets(m, cpr_path, main_path);
        if (r >= 0)
                r = begin_migration(m, cpr_path, main_path, deadline, ret_reason);
        if (r < 0)
                return r;
        m->state = QEMU_HELD;
        r = receive_cpr(m, listen_fd, deadline, ret_reason);
        (void) unlink(cpr_path);
        if (r >= 0)
                r = check_memory(m, deadline, ret_reason);
        return r < 0 ? r : hold_cpr_files(m, ret_reason);
}

/* What QEMU had said before it ended. */
static bool has_completed(Qmp *q)
{
        for (;;) {
                _cleanup_(sd_json_variant_unrefp) sd_json_variant *data = NULL;
                _cleanup_free_ char *name = NULL;
                sd_json_variant *status;

                if (luv_qmp_take_event(q, &name, &data) <= 0)
                        return false;
                status = data ? sd_json_variant_by_key(data, "status") : NULL;
                if (streq(name, "MIGRATION") && status && sd_json_variant_is_string(status) &&
                    streq(sd_json_variant_string(status), "completed"))
                        return true;
        }
}

/* How it ended, by its own word. 1: it has handed itself over; 0: it has not, and goes on, for that reason.
 */
static int migration_end(QemuMachine *m, uint64_t deadline, char **ret_reason)
{
        for (;;) {
                _cleanup_(sd_json_variant_unrefp) sd_json_variant *info = NULL;
                sd_json_variant *status, *why;
                const char *s;
                int r;

                r = luv_qmp_call(m->qmp, "query-migrate", NULL, deadline, &info, ret_reason);
                if (r < 0)
                        return has_completed(m->qmp) ? 1 : r;
                status = sd_json_variant_by_key(info, "status");
                s = status && sd_json_variant_is_string(status) ? sd_json_variant_string(status) : "none";
                if (streq(s, "completed"))
                        return 1;
                if (streq(s, "failed") || streq(s, "cancelled") || streq(s, "none")) {
                        why = sd_json_variant_by_key(info, "error-desc");
                        (void) luv_reason(ret_reason, 0, "QEMU has not handed itself over: %s",
                                          why && sd_json_variant_is_string(why) ? sd_json_variant_string(why)
                                                                                : s);
                        return 0;
                }
                r = luv_qmp_wait_event(m->qmp, "MIGRATION", deadline, NULL);
                if (r < 0)
                        return luv_reason(ret_reason, r,
                                          "QEMU does not say whether it has handed itself over: %s",
                                          r == -ECONNRESET ? "it has ended" : strerror(-r));
        }
}

int luv_qemu_let_go(QemuMachine *m, char **ret_reason)
{
        bool untouched = m->main_fd >= 0;
        int r;

        if (m->state != QEMU_HELD)
                return 0;
        /* Before the channel is closed, which is what QEMU waits for. Whether that was in time only its
         * state tells. */
        r = luv_qmp_call(m->qmp, "migrate_cancel", NULL, luv_now_usec() + CALL_USEC, NULL, NULL);
        luv_qemu_drop_channels(m);
        /* Where it hangs: there is nobody any more to whom it could hand itself over. */
        if (r == -ETIMEDOUT && untouched) {
                m->unanswered = true;
                m->state = QEMU_RUNNING;
                return 0;
        }
        r = migration_end(m, luv_now_usec() + CALL_USEC, ret_reason);
        if (r > 0)
                return luv_reason(ret_reason, -ENODATA, "QEMU has handed itself over, and nobody took it");
        if (r < 0)
                return r;
        m->state = QEMU_RUNNING;
        return 0;
}

/* quiesce */

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

static void unstore_begun(void)
{
        unstore(QEMU_BEGUN);
        unstore(QEMU_CHANNEL);
        unstore(QEMU_PIPE_IN);
        unstore(QEMU_PIPE_OUT);
}

void luv_qemu_unstore(const QemuMachine *m)
{
        unstore(QEMU_DOCUMENT);
        unstore_begun();
        unstore(QEMU_STREAM);
        for (size_t i = 0; i < m->n_held; i++)
                unstore(m->held[i].name);
}

/* What is in the pipe goes to the end of the stream. */
static int drain_pipe(QemuMachine *m)
{
        ssize_t n;

        do
                n = splice(m->pipe_fds[0], NULL, m->stream_fd, NULL, SPLICE_SIZE, SPLICE_F_NONBLOCK);
        while (n > 0 || (n < 0 && errno == EINTR));
        return n < 0 && errno != EAGAIN ? negative_errno() : 0;
}

/*
 * Until QEMU ends it; whoever is late gets no more of it than is there already. Nothing of it is ever in
 * this process, which may be killed: another run of this program goes on where it stands.
 */
static int receive_stream(QemuMachine *m, uint64_t deadline, bool *ret_late)
{
        for (;;) {
                struct pollfd p = { .fd = m->channel_fd, .events = POLLIN };
                uint64_t left = luv_usec_left(deadline);
                struct stat st;
                ssize_t n;
                int r;

                r = drain_pipe(m);
                if (r < 0)
                        return r;
                if (fstat(m->stream_fd, &st) < 0)
                        return negative_errno();
                if ((uint64_t) st.st_size > STREAM_SIZE_MAX)
                        return -EFBIG;
                n = splice(m->channel_fd, NULL, m->pipe_fds[1], NULL, SPLICE_SIZE, SPLICE_F_NONBLOCK);
                if (n == 0)
                        return 0;
                if (n > 0 || errno == EINTR)
                        continue;
                if (errno != EAGAIN)
                        return negative_errno();
                if (left == 0) {
                        *ret_late = true;
                        if (shutdown(m->channel_fd, SHUT_RD) < 0)
                                return negative_errno();
                } else if (poll(&p, 1, (int) MIN(left / USEC_PER_MSEC + 1, (uint64_t) INT32_MAX)) < 0 &&
                           errno != EINTR)
                        return negative_errno();
        }
}

static int receive_stream_from(QemuMachine *m, uint64_t deadline, bool *ret_late)
{
        int r;

        while ((r = wait_connection(m, m->main_fd, deadline)) == 0) {
                r = luv_qmp_process(m->qmp);
                if (r < 0)
                        return r;
        }
        if (r < 0)
                return r;
        m->channel_fd = accept_one(m->main_fd);
        if (m->channel_fd < 0)
                return m->channel_fd;
        store(QEMU_CHANNEL, m->channel_fd);
        return receive_stream(m, deadline, ret_late);
}

/*
 * Closing the channel is what QEMU waits for: it stops its vCPUs and sends its state on the other one.
 * Whether it has done so, or goes on, is its own word. One that has ended after it gave it is captured, and
 * so is one that was done in time when we were not.
 */
static int receive_state(QemuMachine *m, uint64_t deadline, char **ret_reason)
{
        _cleanup_free_ char *why = NULL;
        bool late = false;
        int r, end;

        m->cpr_fd = safe_close(m->cpr_fd);
        r = receive_stream_from(m, deadline, &late);
        m->main_fd = safe_close(m->main_fd);
        end = migration_end(m, luv_now_usec() + CALL_USEC, &why);
        if (r >= 0 && end > 0)
                return 0;
        r = late ? -ETIMEDOUT : r;
        if (end == 0) {
                luv_qemu_drop_channels(m);
                m->state = QEMU_RUNNING;
        }
        return luv_reason(ret_reason, r < 0 ? r : -EREMOTEIO, "%s",
                          why ? why : "QEMU does not send its state");
}

static uint64_t eventfd_count(int fd)
{
        eventfd_t n;

        return eventfd_read(fd, &n) < 0 ? 0 : n;
}

/* Whether the kernel signals B, and not A, when the vector's interrupt comes. Nobody else reads them. */
static bool is_wired_to(int device_fd, VfioIrq type, unsigned vector, const CprFd *a, const CprFd *b)
{
        if (!a || !b)
                return false;
        (void) eventfd_count(a->fd);
        (void) eventfd_count(b->fd);
        if (luv_vfio_irq_raise(device_fd, type, vector) < 0)
                return false;
        return eventfd_count(a->fd) == 0 && eventfd_count(b->fd) > 0;
}

static int add_eventfd(QemuMachine *m, const char *device, const char *suffix, int32_t id, uint64_t initial,
                       VfioIrq irq, unsigned vector)
{
        _cleanup_free_ char *name = luv_strf("%s_%s", device, suffix);

        if (!name)
                return -ENOMEM;
        return luv_qemu_document_set_eventfd(m->document,
                                             &(QemuEventfd) { .name = name,
                                                              .id = id,
                                                              .initial = initial,
                                                              .device = irq < 0 ? NULL : (char *) device,
                                                              .irq = irq,
                                                              .vector = vector });
}

/*
 * A vector has two eventfds: one that KVM turns into an interrupt by itself, and one for QEMU, which it uses
 * while the guest has the vector masked. One that the guest has enabled after QEMU handed over has none. Of
 * two that an earlier run of this program has described, without being able to hand them on, it was the
 * first.
 */
static int add_vector(QemuMachine *m, const char *device, int device_fd, VfioIrq type, unsigned vector)
{
        _cleanup_free_ char *kvm_name = luv_strf("%s_kvm_interrupt", device),
                            *name = luv_strf("%s_interrupt", device);
        bool kvm, user, by_user;
        int r = 0;

        if (!kvm_name || !name)
                return -ENOMEM;
        kvm = luv_qemu_document_find_eventfd(m->document, kvm_name, (int32_t) vector);
        user = luv_qemu_document_find_eventfd(m->document, name, (int32_t) vector);
        by_user = user && (!kvm || is_wired_to(device_fd, type, vector,
                                               luv_cpr_find_fd(&m->cpr, kvm_name, (int32_t) vector),
                                               luv_cpr_find_fd(&m->cpr, name, (int32_t) vector)));
        if (user || !kvm)
                r = add_eventfd(m, device, "interrupt", (int32_t) vector, by_user,
                                by_user ? type : _VFIO_IRQ_INVALID, vector);
        if (r >= 0 && (kvm || !user))
                r = add_eventfd(m, device, "kvm_interrupt", (int32_t) vector, !by_user,
                                by_user ? _VFIO_IRQ_INVALID : type, vector);
        return r;
}

static int add_single(QemuMachine *m, const char *device, const char *suffix, VfioIrq irq)
{
        _cleanup_free_ char *name = luv_strf("%s_%s", device, suffix);
        const CprFd *f;

        if (!name)
                return -ENOMEM;
        if (!luv_qemu_document_find_eventfd(m->document, name, 0))
                return 0;
        f = luv_cpr_find_fd(&m->cpr, name, 0);
        /* INTx comes again as long as the device has a reason for it, but one that waits here has masked it.
         */
        return add_eventfd(m, device, suffix, 0, irq == VFIO_IRQ_INTX && (!f || eventfd_count(f->fd) > 0),
                           irq, 0);
}

/* What is wired is wired again. Messages that come meanwhile may be lost, so each vector begins with one. */
static int add_interrupts(QemuMachine *m, const char *device, const char *address, int device_fd)
{
        _cleanup_free_ VfioWired *wired = malloc(sizeof(VfioWired));
        int r;

        if (!wired)
                return -ENOMEM;
        r = luv_vfio_wired_read(address, wired);
        if (r < 0)
                return r;
        if (wired->type == VFIO_IRQ_INTX) {
                r = add_single(m, device, "intx-interrupt", VFIO_IRQ_INTX);
                if (r >= 0)
                        r = add_single(m, device, "intx-unmask", VFIO_IRQ_UNMASK);
        } else
                for (size_t i = 0; i < wired->n && r >= 0; i++)
                        if (wired->vectors[i])
                                r = add_vector(m, device, device_fd, wired->type, (unsigned) i);
        if (r >= 0)
                r = add_single(m, device, "err_notifier", VFIO_IRQ_ERR);
        if (r >= 0)
                r = add_single(m, device, "req_notifier", VFIO_IRQ_REQ);
        return r;
}

/* Those that are held back by the device stay on. */
static int interrupts_off(const QemuMachine *m, char **ret_reason)
{
        _cleanup_free_ VfioWired *wired = malloc(sizeof(VfioWired));

        if (!wired)
                return -ENOMEM;
        for (size_t i = 0; i < m->document->n_devices; i++) {
                const QemuDevice *x = &m->document->devices[i];
                int fd = luv_qemu_device_file(m->document, m->held, m->n_held, x->name), r;
                uint64_t preserved = luv_fd_preserved(fd);

                r = luv_vfio_wired_read(x->address, wired);
                if (r >= 0 && wired->type >= 0 &&
                    (preserved == FD_PRESERVED_UNKNOWN || !(preserved & LUVFIO_PRESERVED_INTERRUPTS)))
                        r = luv_vfio_irq_off(fd, wired->type);
                if (r < 0)
                        return luv_reason(ret_reason, r, "interrupts of device %s cannot be turned off: %s",
                                          x->address, strerror(-r));
        }
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
        return r;
}

/* What it has handed over, but for how the interrupts of its devices are wired, which changes as long as it
 * runs. */
static int describe_files(QemuMachine *m, char **ret_reason)
{
        int r = 0;

        for (size_t i = 0; i < m->cpr.n_devices && r >= 0; i++)
                r = add_device(m, &m->cpr.devices[i], ret_reason);
        for (size_t i = 0; i < m->cpr.n_fds && r >= 0; i++) {
                CprFd *f = &m->cpr.fds[i];
                const QemuHeld *h = luv_qemu_find_same(m, f->fd);

                if (h)
                        r = luv_qemu_document_add_preserved(m->document,
                                                            &(QemuPreserved) { .name = f->name,
                                                                               .id = f->id,
                                                                               .file = h->name });
                else
                        r = luv_qemu_document_set_eventfd(m->document,
                                                          &(QemuEventfd) { .name = f->name,
                                                                           .id = f->id,
                                                                           .irq = _VFIO_IRQ_INVALID });
        }
        return r;
}

static int describe_interrupts(QemuMachine *m)
{
        int r = 0;

        for (size_t i = 0; i < m->document->n_devices && r >= 0; i++) {
                const QemuDevice *x = &m->document->devices[i];

                r = add_interrupts(m, x->name, x->address,
                                   luv_qemu_device_file(m->document, m->held, m->n_held, x->name));
        }
        return r;
}

/* What can be asked while it runs. */
int luv_qemu_begin_document(QemuMachine *m, uint64_t deadline, char **ret_reason)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *status = NULL;
        sd_json_variant *running;
        QemuDocument *d;
        int r;

        luv_qemu_drop_capture(m);
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
        if (r >= 0 && m->config.backend->describe)
                r = m->config.backend->describe(m, deadline, ret_reason);
        if (r >= 0)
                r = luv_qmp_call(m->qmp, "query-status", NULL, deadline, &status, ret_reason);
        if (r < 0)
                return r;
        running = sd_json_variant_by_key(status, "running");
        d->running = running && sd_json_variant_is_boolean(running) && sd_json_variant_boolean(running);
        return 0;
}

/* From here on another run of this program can end it. */
static int begin_capture(QemuMachine *m, char **ret_reason)
{
        int r;

        r = describe_files(m, ret_reason);
        if (r >= 0)
                r = luv_qemu_document_write(m->document, &m->begun_fd, ret_reason);
        if (r < 0)
                return r;
        m->stream_fd = memfd_create("luvfio-qemu-stream", MFD_CLOEXEC | MFD_NOEXEC_SEAL);
        if (m->stream_fd < 0 || pipe2(m->pipe_fds, O_CLOEXEC | O_NONBLOCK) < 0)
                return negative_errno();
        for (size_t i = 0; i < m->n_held; i++)
                store(m->held[i].name, m->held[i].fd);
        store(QEMU_STREAM, m->stream_fd);
        store(QEMU_PIPE_OUT, m->pipe_fds[0]);
        store(QEMU_PIPE_IN, m->pipe_fds[1]);
        store(QEMU_BEGUN, m->begun_fd);
        return 0;
}

static int end_capture(QemuMachine *m, uint64_t deadline, char **ret_reason)
{
        struct stat st;
        int r;

        m->state = QEMU_CAPTURED;
        (void) luv_qemu_process_signal(&m->process, SIGSTOP);
        if (fstat(m->stream_fd, &st) < 0)
                return negative_errno();
        m->document->stream_size = (uint64_t) st.st_size;
        r = describe_interrupts(m);
        if (r >= 0)
                r = luv_qemu_document_write(m->document, &m->document_fd, ret_reason);
        if (r < 0)
                return r;
        /* The one that says that all are there. */
        store(QEMU_DOCUMENT, m->document_fd);
        unstore_begun();
        r = interrupts_off(m, ret_reason);
        return r >= 0 && m->config.backend->captured ? m->config.backend->captured(m, deadline, ret_reason)
                                                     : r;
}

int luv_qemu_take_stream(QemuMachine *m, uint64_t deadline, char **ret_reason)
{
        bool late = false;
        int r;

        r = receive_stream(m, deadline, &late);
        return r < 0 ? luv_reason(ret_reason, r, "what QEMU has sent cannot be read: %s", strerror(-r)) : 0;
}

int luv_qemu_end_capture(QemuMachine *m, uint64_t deadline, char **ret_reason)
{
        int r;

        r = luv_qemu_document_read(m->begun_fd, &m->document, ret_reason);
        return r < 0 ? r : end_capture(m, deadline, ret_reason);
}

int luv_qemu_quiesce(QemuMachine *m, uint64_t deadline, char **ret_reason)
{
        int r;

        r = begin_capture(m, ret_reason);
        if (r >= 0)
                r = receive_state(m, deadline, ret_reason);
        if (r >= 0)
                r = end_capture(m, deadline, ret_reason);
        if (r < 0)
                return r;
        r = luvfio_preserve(m->l, QEMU_STREAM, LUVFIO_KIND_STATE, m->stream_fd, NULL);
        if (r >= 0)
                r = luvfio_preserve(m->l, QEMU_DOCUMENT, LUVFIO_KIND_STATE, m->document_fd, NULL);
        return r < 0 ? luv_reason(ret_reason, r, "%s", luvfio_get_error(m->l)) : 0;
}
