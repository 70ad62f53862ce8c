/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "agents/qemu-replay.h"
#include "util/string-util.h"
#include "util/time-util.h"

#define KILL_USEC (10 * USEC_PER_SEC)
#define STATUS_USEC (10 * USEC_PER_MSEC)

const QemuHeld *luv_qemu_held_find(const QemuHeld *held, size_t n, const char *name)
{
        for (size_t i = 0; i < n; i++)
                if (streq(held[i].name, name))
                        return &held[i];
        return NULL;
}

int luv_qemu_device_file(const QemuDocument *d, const QemuHeld *held, size_t n, const char *device)
{
        const QemuHeld *h;

        for (size_t i = 0; i < d->n_preserved; i++)
                if (d->preserved[i].id == 0 && streq(d->preserved[i].name, device)) {
                        h = luv_qemu_held_find(held, n, d->preserved[i].file);
                        return h ? h->fd : -ENOENT;
                }
        return -ENOENT;
}

static int new_socket(const char *path, struct sockaddr_un *ret)
{
        int fd;

        *ret = (struct sockaddr_un) { .sun_family = AF_UNIX };
        if (strlen(path) >= sizeof(ret->sun_path))
                return -ENAMETOOLONG;
        memcpy(ret->sun_path, path, strlen(path));
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        return fd < 0 ? negative_errno() : fd;
}

int luv_qemu_listen(const char *path)
{
        struct sockaddr_un address;
        _cleanup_close_ int fd = new_socket(path, &address);
        mode_t old;
        int r;

        if (fd < 0)
                return fd;
        if (unlink(path) < 0 && errno != ENOENT)
                return negative_errno();
        old = umask(0177);
        r = bind(fd, (struct sockaddr *) &address, sizeof(address)) < 0 ? negative_errno() : 0;
        (void) umask(old);
        if (r < 0)
                return r;
        return listen(fd, 1) < 0 ? negative_errno() : TAKE_FD(fd);
}

int luv_qemu_connect(const char *path)
{
        struct sockaddr_un address;
        _cleanup_close_ int fd = new_socket(path, &address);

        if (fd < 0)
                return fd;
        if (connect(fd, (struct sockaddr *) &address, sizeof(address)) < 0)
                return negative_errno();
        return TAKE_FD(fd);
}

int luv_qemu_monitor(const char *path, uint64_t deadline, Qmp **ret, char **ret_reason)
{
        _cleanup_close_ int fd = luv_qemu_connect(path);

        if (fd < 0)
                return luv_reason(ret_reason, fd, "QEMU's monitor at %s cannot be reached: %s", path,
                                  strerror(-fd));
        return luv_qmp_open(&fd, deadline, ret, ret_reason);
}

/* Interrupts. */

/* All vectors of one interrupt of a device at once. */
static int wire(const QemuReplay *p, const CprState *cpr, const char *device, VfioIrq irq)
{
        const QemuDocument *d = p->document;
        _cleanup_free_ int *fds = NULL;
        size_t n = 0;

        for (size_t i = 0; i < d->n_eventfds; i++)
                if (streq_ptr(d->eventfds[i].device, device) && d->eventfds[i].irq == irq)
                        n = MAX(n, (size_t) d->eventfds[i].vector + 1);
        if (n == 0)
                return 0;
        fds = malloc(n * sizeof(int));
        if (!fds)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++)
                fds[i] = -1;
        for (size_t i = 0; i < d->n_eventfds; i++) {
                const QemuEventfd *e = &d->eventfds[i];

                if (streq_ptr(e->device, device) && e->irq == irq)
                        fds[e->vector] = luv_cpr_find_fd(cpr, e->name, e->id)->fd;
        }
        return luv_vfio_irq_on(luv_qemu_device_file(d, p->held, p->n_held, device), irq, fds, n);
}

static int wire_all(const QemuReplay *p, const CprState *cpr, char **ret_reason)
{
        for (size_t i = 0; i < p->document->n_devices; i++)
                for (VfioIrq irq = 0; irq < _VFIO_IRQ_MAX; irq++) {
                        const QemuDevice *x = &p->document->devices[i];
                        int r = wire(p, cpr, x->name, irq);

                        if (r < 0)
                                return luv_reason(ret_reason, r,
                                                  "interrupts of device %s (%s) cannot be wired: %s",
                                                  x->address, luv_vfio_irq_to_string(irq), strerror(-r));
                }
        return 0;
}

/* What QEMU gets. */

static int build_cpr(const QemuReplay *p, CprState *ret, char **ret_reason)
{
        _cleanup_cpr_state_ CprState s = {};
        const QemuDocument *d = p->document;
        int r = 0;

        for (size_t i = 0; i < d->n_preserved && r >= 0; i++) {
                const QemuHeld *h = luv_qemu_held_find(p->held, p->n_held, d->preserved[i].file);
                _cleanup_close_ int fd = -EBADF;

                if (!h)
                        return luv_reason(ret_reason, -ENOENT, "there is no file \"%s\"",
                                          d->preserved[i].file);
                fd = fcntl(h->fd, F_DUPFD_CLOEXEC, 3);
                r = fd < 0 ? negative_errno()
                           : luv_cpr_add_fd(&s, d->preserved[i].name, d->preserved[i].id, &fd);
        }
        for (size_t i = 0; i < d->n_eventfds && r >= 0; i++) {
                _cleanup_close_ int fd =
                                eventfd((unsigned) d->eventfds[i].initial, EFD_CLOEXEC | EFD_NONBLOCK);

                r = fd < 0 ? negative_errno()
                           : luv_cpr_add_fd(&s, d->eventfds[i].name, d->eventfds[i].id, &fd);
        }
        for (size_t i = 0; i < d->n_devices && r >= 0; i++)
                r = luv_cpr_add_device(&s, &(CprDevice) {
                                                           .name = d->devices[i].name,
                                                           .devid = (int32_t) d->devices[i].devid,
                                                           .ioas = (uint32_t) d->devices[i].ioas,
                                                           .hwpt = (uint32_t) d->devices[i].hwpt,
                                           });
        if (r < 0)
                return luv_reason(ret_reason, r, "file descriptors for QEMU: %s", strerror(-r));
        *ret = s;
        s = (CprState) {};
        return 0;
}

static int send_stream(int socket_fd, int stream_fd, uint64_t size, uint64_t deadline)
{
        off_t at = 0;

        while ((uint64_t) at < size) {
                struct pollfd x = { .fd = socket_fd, .events = POLLOUT };
                uint64_t left = luv_usec_left(deadline);

                if (left == 0)
                        return -ETIMEDOUT;
                if (poll(&x, 1, (int) MIN(left / USEC_PER_MSEC + 1, (uint64_t) INT32_MAX)) < 0)
                        return negative_errno();
                if (x.revents && sendfile(socket_fd, stream_fd, &at, (size_t) (size - (uint64_t) at)) < 0 &&
                    errno != EAGAIN && errno != EINTR)
                        return negative_errno();
        }
        return 0;
}

/* What the new QEMU gets, and where it is reached. */
typedef struct Sockets {
        char *monitor, *cpr;
        int monitor_fd, cpr_fd; /* listening */
        int main_fd, stream_fd; /* both ends of the channel on which it reads its state */
} Sockets;

#define SOCKETS_NULL                                                                                        \
        ((Sockets) { .monitor_fd = -EBADF, .cpr_fd = -EBADF, .main_fd = -EBADF, .stream_fd = -EBADF })

static void sockets_done(Sockets *s)
{
        free(s->monitor);
        free(s->cpr);
        safe_close(s->monitor_fd);
        safe_close(s->cpr_fd);
        safe_close(s->main_fd);
        safe_close(s->stream_fd);
}

static int make_sockets(const char *dir, Sockets *ret)
{
        int pair[2];

        ret->monitor = luv_strf("%s/qmp.sock", dir);
        ret->cpr = luv_strf("%s/cpr.sock", dir);
        if (!ret->monitor || !ret->cpr)
                return -ENOMEM;
        ret->monitor_fd = luv_qemu_listen(ret->monitor);
        if (ret->monitor_fd < 0)
                return ret->monitor_fd;
        ret->cpr_fd = luv_qemu_listen(ret->cpr);
        if (ret->cpr_fd < 0)
                return ret->cpr_fd;
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
                return negative_errno();
        ret->main_fd = pair[0];
        ret->stream_fd = pair[1];
        return 0;
}

static int start(const QemuReplay *p, Sockets *s, QemuProcess *ret, char **ret_reason)
{
        int r;

        r = make_sockets(p->runtime_dir, s);
        if (r < 0)
                return luv_reason(ret_reason, r, "sockets in %s cannot be made: %s", p->runtime_dir,
                                  strerror(-r));
        r = luv_qemu_start(&(QemuStart) { .argv = p->document->argv,
                                          .cwd = p->document->cwd,
                                          .machine_type = p->document->machine_type,
                                          .monitor_fd = s->monitor_fd,
                                          .main_fd = s->main_fd,
                                          .cpr_fd = s->cpr_fd,
                                          .note = p->note,
                                          .userdata = p->userdata },
                           ret, ret_reason);
        /* So that whoever waits at them hears of its end. */
        s->monitor_fd = safe_close(s->monitor_fd);
        s->main_fd = safe_close(s->main_fd);
        s->cpr_fd = safe_close(s->cpr_fd);
        return r;
}

static int migration_error(Qmp *q, uint64_t deadline, char **ret_reason)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *info = NULL;
        sd_json_variant *why = NULL;

        if (luv_qmp_call(q, "query-migrate", NULL, deadline, &info, NULL) >= 0)
                why = sd_json_variant_by_key(info, "error-desc");
        return luv_reason(ret_reason, -EREMOTEIO, "QEMU cannot take the machine in: %s",
                          why && sd_json_variant_is_string(why) ? sd_json_variant_string(why)
                                                                : "see what it says itself");
}

static int wait_incoming(Qmp *q, uint64_t deadline, char **ret_reason)
{
        for (;;) {
                _cleanup_(sd_json_variant_unrefp) sd_json_variant *data = NULL;
                sd_json_variant *status;
                int r;

                r = luv_qmp_wait_event(q, "MIGRATION", deadline, &data);
                if (r < 0)
                        return luv_reason(ret_reason, r, "QEMU does not take the machine in: %s",
                                          r == -ECONNRESET ? "it has ended" : strerror(-r));
                status = data ? sd_json_variant_by_key(data, "status") : NULL;
                if (!status || !sd_json_variant_is_string(status))
                        continue;
                if (streq(sd_json_variant_string(status), "completed"))
                        return 0;
                if (streq(sd_json_variant_string(status), "failed"))
                        return migration_error(q, deadline, ret_reason);
        }
}

static const char *string_of(sd_json_variant *v, const char *key)
{
        v = v ? sd_json_variant_by_key(v, key) : NULL;
        return v && sd_json_variant_is_string(v) ? sd_json_variant_string(v) : "?";
}

/* Until its status is STATUS, or, with NOT, another one. There is not an event for each. */
static int wait_status(Qmp *q, const char *status, bool not, uint64_t deadline, char **ret_reason)
{
        for (;;) {
                _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL;
                int r;

                r = luv_qmp_call(q, "query-status", NULL, deadline, &v, ret_reason);
                if (r < 0 || streq(string_of(v, "status"), status) != not)
                        return r;
                if (luv_usec_left(deadline) == 0)
                        return luv_reason(ret_reason, -ETIMEDOUT, "QEMU is %s and stays so",
                                          string_of(v, "status"));
                r = luv_qmp_wait_event(q, "RESUME", MIN(deadline, luv_now_usec() + STATUS_USEC), NULL);
                if (r < 0 && r != -ETIMEDOUT)
                        return luv_reason(ret_reason, r, "QEMU has ended");
        }
}

static int make_run(Qmp *q, uint64_t deadline, char **ret_reason)
{
        int r;

        r = luv_qmp_call(q, "cont", NULL, deadline, NULL, ret_reason);
        return r < 0 ? r : wait_status(q, "running", false, deadline, ret_reason);
}

static int events_on(Qmp *q, uint64_t deadline, char **ret_reason)
{
        sd_json_variant *v = NULL;
        int r;

        r = sd_json_buildo(&v,
                           SD_JSON_BUILD_PAIR("capabilities",
                                              SD_JSON_BUILD_ARRAY(SD_JSON_BUILD_OBJECT(
                                                              SD_JSON_BUILD_PAIR_STRING("capability",
                                                                                        "events"),
                                                              SD_JSON_BUILD_PAIR_BOOLEAN("state", true)))));
        return r < 0 ? r : luv_qmp_call(q, "migrate-set-capabilities", v, deadline, NULL, ret_reason);
}

static int note(const QemuReplay *p, const QemuProcess *process, bool whole, char **ret_reason)
{
        int r = p->note ? p->note(process, whole, p->userdata) : 0;

        return r < 0 ? luv_reason(ret_reason, r, "QEMU (pid %i) cannot be noted in %s: %s",
                                  (int) process->pid, p->runtime_dir, strerror(-r))
                     : 0;
}

static int feed(const QemuReplay *p, const Sockets *s, const CprState *cpr, const QemuProcess *process,
                Qmp **ret, char **ret_reason)
{
        _cleanup_close_ int cpr_fd = -EBADF;
        int r;

        cpr_fd = luv_qemu_connect(s->cpr);
        r = cpr_fd < 0 ? cpr_fd : luv_cpr_send(cpr_fd, cpr, p->deadline);
        if (r < 0)
                return luv_reason(ret_reason, r, "QEMU does not take its file descriptors: %s",
                                  strerror(-r));
        /* It speaks when it has made the machine. */
        r = luv_qemu_monitor(s->monitor, p->deadline, ret, ret_reason);
        if (r >= 0)
                r = events_on(*ret, p->deadline, ret_reason);
        if (r < 0)
                return r;
        r = send_stream(s->stream_fd, p->stream_fd, p->document->stream_size, p->deadline);
        if (r < 0)
                return luv_reason(ret_reason, r, "QEMU does not take its state: %s", strerror(-r));
        r = wait_incoming(*ret, p->deadline, ret_reason);
        if (r >= 0)
                r = wait_status(*ret, "inmigrate", true, p->deadline, ret_reason);
        if (r >= 0)
                r = note(p, process, true, ret_reason);
        if (r >= 0 && p->document->running) {
                r = make_run(*ret, p->deadline, ret_reason);
                /* Refused: its vCPUs have not run. */
                if (r == -EREMOTEIO)
                        (void) note(p, process, false, NULL);
        }
        return r;
}

int luv_qemu_replay_files(const QemuReplay *p, CprState *ret, char **ret_reason)
{
        _cleanup_cpr_state_ CprState s = {};
        int r;

        r = build_cpr(p, &s, ret_reason);
        if (r >= 0)
                r = wire_all(p, &s, ret_reason);
        if (r < 0)
                return r;
        *ret = s;
        s = (CprState) {};
        return 0;
}

int luv_qemu_replay(const QemuReplay *p, QemuProcess *ret, Qmp **ret_qmp, char **ret_reason)
{
        _cleanup_(sockets_done) Sockets s = SOCKETS_NULL;
        _cleanup_(luv_qemu_process_done) QemuProcess process = QEMU_PROCESS_NULL;
        _cleanup_(luv_qmp_freep) Qmp *q = NULL;
        _cleanup_cpr_state_ CprState cpr = {};
        int r;

        r = luv_qemu_replay_files(p, &cpr, ret_reason);
        if (r >= 0)
                r = start(p, &s, &process, ret_reason);
        if (r < 0)
                return r;
        r = feed(p, &s, &cpr, &process, &q, ret_reason);
        (void) unlink(s.cpr);
        if (r < 0) {
                if (luv_qemu_process_is_ending(&process) && ret_reason) {
                        free(*ret_reason);
                        *ret_reason = NULL;
                        (void) luv_reason(ret_reason, r, "QEMU (pid %i) has ended, and says itself why",
                                          (int) process.pid);
                }
                (void) luv_qemu_process_kill(&process, luv_now_usec() + KILL_USEC);
                return r;
        }
        *ret = process;
        process = QEMU_PROCESS_NULL;
        *ret_qmp = TAKE_PTR(q);
        return 0;
}
