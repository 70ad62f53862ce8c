/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "agents/agent-libvirt/libvirt-domain.h"
#include "agents/agent-libvirt/libvirt-private.h"
#include "agents/qemu-private.h"
#include "util/log.h"
#include "util/string-util.h"
#include "util/time-util.h"

/* libvirt looks first what QEMU can do, anew with each kernel. */
#define START_DEADLINE_USEC (180 * USEC_PER_SEC)
#define RETRY_MSEC 20

typedef struct Domain {
        char *uuid, *xml;
        bool active;
        uint64_t pid;
} Domain;

static void domain_done(Domain *d)
{
        free(d->uuid);
        free(d->xml);
}

/* In a process of its own, since libvirt's calls block. It ends when the socket is closed. */
static int open_monitor(QemuMachine *m, char **ret_reason)
{
        char *argv[] = { (char *) "luvfio-libvirt", (char *) "--monitor", (char *) m->config.name, NULL };
        _cleanup_close_ int ours = -EBADF, theirs = -EBADF;
        int pair[2];
        pid_t pid;

        m->qmp = luv_qmp_free(m->qmp);
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
                return negative_errno();
        ours = pair[0];
        theirs = pair[1];
        pid = fork();
        if (pid < 0)
                return negative_errno();
        if (pid == 0) {
                sigset_t none;

                sigemptyset(&none);
                (void) sigprocmask(SIG_SETMASK, &none, NULL);
                if (dup2(theirs, STDIN_FILENO) >= 0)
                        (void) execv("/proc/self/exe", argv);
                _exit(127);
        }
        theirs = safe_close(theirs);
        return luv_qmp_open(&ours, luv_now_usec() + START_DEADLINE_USEC, &m->qmp, ret_reason);
}

static int parse_domain(sd_json_variant *v, Domain *ret)
{
        sd_json_variant *uuid = sd_json_variant_by_key(v, "uuid"), *xml = sd_json_variant_by_key(v, "xml"),
                        *active = sd_json_variant_by_key(v, "active"),
                        *pid = sd_json_variant_by_key(v, "pid");

        if (!uuid || !sd_json_variant_is_string(uuid) || !active || !sd_json_variant_is_boolean(active) ||
            (xml && !sd_json_variant_is_string(xml)) || (pid && !sd_json_variant_is_unsigned(pid)))
                return -EBADMSG;
        *ret = (Domain) {
                .uuid = strdup(sd_json_variant_string(uuid)),
                .xml = xml ? strdup(sd_json_variant_string(xml)) : NULL,
                .active = sd_json_variant_boolean(active),
                .pid = pid ? sd_json_variant_unsigned(pid) : 0,
        };
        if (ret->uuid && (ret->xml || !xml))
                return 0;
        domain_done(ret);
        return -ENOMEM;
}

static int get_domain(QemuMachine *m, uint64_t deadline, Domain *ret, char **ret_reason)
{
        _cleanup_(sd_json_variant_unrefp) sd_json_variant *v = NULL;
        int r;

        r = luv_qmp_call(m->qmp, LIBVIRT_COMMAND_DOMAIN, NULL, deadline, &v, ret_reason);
        return r < 0 ? r : parse_domain(v, ret);
}

/* An active domain's QEMU. */
static int open_process(QemuMachine *m, const Domain *d, char **ret_reason)
{
        int r;

        luv_qemu_process_done(&m->process);
        r = d->pid > 0 && d->pid <= INT32_MAX ? luv_qemu_process_open((pid_t) d->pid, &m->process) : -ESRCH;
        if (r < 0)
                return luv_reason(ret_reason, r, "libvirt does not tell the process of domain %s",
                                  m->config.name);
        return 0;
}

static bool is_unfit(const char *status)
{
        return streq(status, "inmigrate") || streq(status, "postmigrate") || streq(status, "finish-migrate");
}

static int take_up(QemuMachine *m, char **ret_reason)
{
        _cleanup_(domain_done) Domain d = {};
        _cleanup_free_ char *status = NULL;
        uint64_t deadline;
        int r;

        r = open_monitor(m, ret_reason);
        if (r >= 0)
                r = get_domain(m, luv_now_usec() + START_DEADLINE_USEC, &d, ret_reason);
        if (r < 0)
                return r;
        if (!d.active)
                return 0;
        r = open_process(m, &d, ret_reason);
        if (r < 0)
                return r;
        deadline = luv_now_usec() + CALL_USEC;
        /* Its capture is to be ended yet. */
        if (m->channel_fd >= 0)
                (void) luv_qemu_process_signal(&m->process, SIGCONT);
        /* QEMU says nothing while it waits for what it is given, or when it was captured. */
        if (!luv_qemu_process_is_stopped(&m->process)) {
                if (m->channel_fd >= 0)
                        r = luv_qemu_take_stream(m, deadline, ret_reason);
                if (r >= 0)
                        r = luv_qemu_settled_status(m, deadline, &status, ret_reason);
        }
        if (r >= 0 && status && !is_unfit(status)) {
                luv_log_info("QEMU (pid %i) of domain %s is taken up", (int) m->process.pid, m->config.name);
                r = luv_qemu_adopt(m);
                return r < 0 ? r : 1;
        }
        if (r >= 0 && status && streq(status, "postmigrate") && m->channel_fd >= 0)
                r = luv_qemu_end_capture(m, deadline, ret_reason);
        if (r < 0 && !luv_qemu_comes_in(m))
                return r;
        free(*ret_reason);
        *ret_reason = NULL;
        luv_qemu_release(m);
        return 0;
}

/* libvirt has been started anew. */
static int reopen(QemuMachine *m, char **ret_reason)
{
        _cleanup_(domain_done) Domain d = {};
        int r;

        r = open_monitor(m, ret_reason);
        if (r >= 0)
                r = get_domain(m, luv_now_usec() + START_DEADLINE_USEC, &d, ret_reason);
        if (r < 0)
                return r;
        return d.active && d.pid == (uint64_t) m->process.pid
                               ? 0
                               : luv_reason(ret_reason, -ESTALE, "libvirt has another QEMU of it, or none");
}

static int start(QemuMachine *m, char **ret_reason)
{
        return luv_reason(ret_reason, -ECHILD, "the domain does not run");
}

static int check(QemuMachine *m, uint64_t deadline, Blockers *b)
{
        _cleanup_free_ char *reason = NULL;
        _cleanup_(luv_libvirt_xml_done) LibvirtXml x = {};
        _cleanup_(domain_done) Domain d = {};
        int r;

        r = get_domain(m, deadline, &d, &reason);
        if (r >= 0 && d.xml)
                r = luv_libvirt_xml_parse(d.xml, &x, &reason);
        if (r < 0)
                return r == -ENOMEM ? r
                                    : luv_blockers_add(b, "See whether libvirt hangs.", "%s",
                                                       reason ? reason : strerror(-r));
        for (char **s = x.managed; s && *s && r >= 0; s++)
                r = luv_blockers_add(
                                b, "Bind it to vfio-pci by other means, and set managed='no'.",
                                "device %s is managed by libvirt, which would give it back to its driver",
                                *s);
        for (char **s = x.no_iommufd; s && *s && r >= 0; s++)
                r = luv_blockers_add(b, "Add <driver iommufd='yes'/> to it.",
                                     "device %s is used without an iommufd", *s);
        return r;
}

static int describe(QemuMachine *m, uint64_t deadline, char **ret_reason)
{
        _cleanup_(domain_done) Domain d = {};
        QemuDocument *x = m->document;
        struct stat st;
        char path[32];
        int r;

        r = get_domain(m, deadline, &d, ret_reason);
        if (r < 0)
                return r;
        if (!d.xml)
                return luv_reason(ret_reason, -ENODATA, "libvirt does not say what domain %s is like",
                                  m->config.name);
        (void) snprintf(path, sizeof(path), "/proc/%i", (int) m->process.pid);
        if (stat(path, &st) < 0)
                return negative_errno();
        x->uid = st.st_uid;
        x->gid = st.st_gid;
        x->xml = TAKE_PTR(d.xml);
        return 0;
}

static char *image_path(const QemuMachine *m)
{
        return luv_strf(LIBVIRT_SAVE_DIR "/%s.save", m->config.name);
}

static int write_image(QemuMachine *m, char **ret_reason)
{
        _cleanup_free_ char *path = image_path(m), *cpr = luv_qemu_path(m, "cpr.sock");
        const QemuDocument *d = m->document;

        if (!path || !cpr)
                return -ENOMEM;
        return luv_libvirt_image_write(path, d->xml, cpr, m->stream_fd, d->stream_size, d->running,
                                       ret_reason);
}

/* From here on "virsh list --all" says that it is saved, and nothing starts it afresh. */
static int captured(QemuMachine *m, uint64_t deadline, char **ret_reason)
{
        return write_image(m, ret_reason);
}

static bool is_image(const QemuMachine *m)
{
        _cleanup_free_ char *path = image_path(m);

        return path && access(path, F_OK) == 0;
}

/* QEMU makes the socket itself, when libvirt has come that far. 1: FD is connected. */
static int connect_cpr(QemuMachine *m, const char *path, uint64_t deadline, bool *started, char **ret_reason)
{
        for (;;) {
                struct pollfd p = { .fd = luv_qmp_get_fd(m->qmp), .events = POLLIN };
                int fd = luv_qemu_connect(path), r;

                if (fd >= 0)
                        return fd;
                if (luv_usec_left(deadline) == 0)
                        return luv_reason(ret_reason, -ETIMEDOUT, "libvirt does not start domain %s in time",
                                          m->config.name);
                r = luv_qmp_try_end(m->qmp, LIBVIRT_COMMAND_START, NULL, ret_reason);
                if (r < 0)
                        return r;
                *started = *started || r > 0;
                (void) poll(&p, *started ? 0 : 1, RETRY_MSEC);
        }
}

static int make_folder(const QemuMachine *m)
{
        if (mkdir(m->config.runtime_dir, 0700) < 0 && errno != EEXIST)
                return negative_errno();
        return chown(m->config.runtime_dir, (uid_t) m->document->uid, (gid_t) m->document->gid) < 0
                               ? negative_errno()
                               : 0;
}

static int go_on(QemuMachine *m, uint64_t deadline, char **ret_reason)
{
        _cleanup_free_ char *cpr_path = luv_qemu_path(m, "cpr.sock"), *status = NULL;
        _cleanup_cpr_state_ CprState cpr = {};
        _cleanup_close_ int cpr_fd = -EBADF;
        _cleanup_(domain_done) Domain d = {};
        bool started = false;
        int r;

        if (!cpr_path)
                return -ENOMEM;
        r = luv_qemu_replay_files(&(QemuReplay) { .document = m->document,
                                                  .held = m->held,
                                                  .n_held = m->n_held },
                                  &cpr, ret_reason);
        if (r >= 0)
                r = make_folder(m);
        if (r >= 0 && !is_image(m))
                r = write_image(m, ret_reason);
        if (r >= 0)
                r = open_monitor(m, ret_reason);
        if (r < 0)
                return r;
        /* In this kernel libvirt may not have seen the end of the old one yet. */
        if (!luv_qemu_comes_in(m)) {
                (void) luv_qmp_call(m->qmp, LIBVIRT_COMMAND_DESTROY, NULL, deadline, NULL, NULL);
                (void) unlink(cpr_path);
        }
        r = luv_qmp_begin(m->qmp, LIBVIRT_COMMAND_START, NULL, deadline, ret_reason);
        if (r < 0)
                return r;
        cpr_fd = connect_cpr(m, cpr_path, deadline, &started, ret_reason);
        r = cpr_fd < 0 ? cpr_fd : luv_cpr_send(cpr_fd, &cpr, deadline);
        if (r >= 0 && !started)
                r = luv_qmp_end(m->qmp, LIBVIRT_COMMAND_START, deadline, NULL, ret_reason);
        if (r >= 0)
                r = get_domain(m, deadline, &d, ret_reason);
        if (r >= 0)
                r = open_process(m, &d, ret_reason);
        if (r >= 0)
                r = luv_qemu_status(m->qmp, &status, ret_reason);
        if (r >= 0 && m->document->running && !streq(status, "running"))
                r = luv_qmp_call(m->qmp, "cont", NULL, deadline, NULL, ret_reason);
        (void) unlink(cpr_path);
        return r < 0 ? r : luv_qemu_adopt(m);
}

const QemuBackend luv_qemu_of_libvirt = {
        .vmm = "QEMU of libvirt, by luvfio-libvirt",
        .take_up = take_up,
        .reopen = reopen,
        .start = start,
        .captured = captured,
        .go_on = go_on,
        .check = check,
        .describe = describe,
};
