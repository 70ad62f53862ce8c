/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <getopt.h>
#include <json-c/json.h>
#include <linux/vfio.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <systemd/sd-daemon.h>

#include "config.h"
#include "luvfio/luvfio.h"
#include "vmm.h"

typedef struct Vmm {
        const char *name;
        const char *report;
        const char *secret_file;
        uint64_t memory;
        bool checksum;
        bool simulated;

        Device devices[DEVICES_MAX];
        Guest guest;
        Iommu iommu;
        bool iommu_is_new; /* luvfiod does not hold this one */
        struct luvfio *l;

        State quiesced;             /* as of the last quiesce, or of the one before the jump */
        struct json_object *verify; /* what was found when the guest was taken up again; told when its
                                       devices work */
        const char *verify_event;
        uint64_t running_usec;
        bool failed;
        bool quit;
} Vmm;

static int fail(Vmm *v, const char *what)
{
        struct json_object *more = json_object_new_object();

        json_object_object_add(more, "ok", json_object_new_boolean(false));
        json_object_object_add(more, "reason", json_object_new_string(what));
        report(v->report, "failed", v->name, &v->guest, more);
        v->failed = v->quit = true;
        return -EIO;
}

/* -- building a machine -- */

static int iommu_create(Vmm *v)
{
        int r;

        if (v->simulated) {
                v->iommu.fd = memfd_create("luvfio-sim:iommufd", MFD_CLOEXEC);
                r = v->iommu.fd < 0 ? log_error(negative_errno(), "memfd: %m") : 0;
        } else
                r = iommu_open(&v->iommu);
        if (r >= 0)
                v->iommu_is_new = true;
        return r;
}

static int device_create(Device *d)
{
        char name[64];

        if (d->driver != &simulated_driver)
                return device_open(d);
        snprintf(name, sizeof(name), "luvfio-sim:vfio:%s", d->bdf);
        d->fd = memfd_create(name, MFD_CLOEXEC);
        return d->fd < 0 ? log_error(negative_errno(), "memfd: %m") : 0;
}

static int machine_create(Vmm *v)
{
        int r;

        r = guest_create_ram(&v->guest, v->memory);
        if (r < 0 || v->guest.n_devices == 0)
                return r;
        r = iommu_create(v);
        if (r >= 0 && !v->simulated)
                r = iommu_map(&v->iommu, v->guest.ram_fd, v->memory);
        for (size_t i = 0; r >= 0 && i < v->guest.n_devices; i++) {
                Device *d = &v->devices[i];

                r = device_identify(d);
                if (r >= 0)
                        r = device_create(d);
                if (r >= 0 && !v->simulated)
                        r = device_attach(d, &v->iommu);
                if (r >= 0 && !v->simulated)
                        r = device_setup(d);
                if (r >= 0)
                        r = device_interrupts_on(d, VFIO_PCI_MSIX_IRQ_INDEX, 0);
                if (r >= 0)
                        r = d->driver->start(d);
        }
        return r;
}

/* -- stopping it and letting it go on in this process -- */

/* For an interrupt that the device has held back and that nothing holds back any more. */
#define LATE_INTERRUPT_MS 1000

/* What the kernel leaves running may as well go on hearing what comes from outside. */
static int device_listen(Vmm *v, Device *d)
{
        const struct luvfio_fd *info;
        char name[32];

        snprintf(name, sizeof(name), "vfio-%s", d->bdf);
        info = v->l ? luvfio_find_fd(v->l, name) : NULL;
        d->area->listening = info && d->driver->listen &&
                             (info->outcome == LUVFIO_OUTCOME_PRESERVED ||
                              info->outcome == LUVFIO_OUTCOME_RUNNING);
        return d->area->listening ? d->driver->listen(d) : 0;
}

/* Of a device that was not reset in between: guest RAM knows whether it was left receiving. */
static int device_restart(Device *d)
{
        struct pollfd p = { .fd = d->irq_fd, .events = POLLIN };
        eventfd_t count = 0;
        int r = 0;

        d->heard = d->told = 0;
        if (d->area->listening)
                r = d->driver->listened(d, &d->heard);
        d->area->listening = 0;
        if (d->latched && d->heard > 0 && poll(&p, 1, LATE_INTERRUPT_MS) > 0 &&
            eventfd_read(d->irq_fd, &count) == 0)
                d->told = (unsigned) count;
        return r < 0 ? r : d->driver->restart(d);
}

static int machine_stop(Vmm *v)
{
        int r = guest_stop(&v->guest);

        for (size_t i = 0; r >= 0 && i < v->guest.n_devices; i++) {
                Device *d = &v->devices[i];

                r = d->driver->stop(d);
                d->latched = device_latches(d);
                if (r >= 0 && !d->latched)
                        r = device_interrupts_off(d);
                if (r >= 0)
                        r = device_listen(v, d);
        }
        return r;
}

/* Interrupts that came while they were off are lost, so each vector gets one: the guest looks after its
 * queues. Those that were held back come by themselves. */
static int machine_continue(Vmm *v)
{
        int r = 0;

        for (size_t i = 0; r >= 0 && i < v->guest.n_devices; i++) {
                Device *d = &v->devices[i];

                if (d->latched)
                        device_unlatch(d);
                else
                        r = device_interrupts_on(d, VFIO_PCI_MSIX_IRQ_INDEX, 1);
                if (r >= 0)
                        r = device_restart(d);
        }
        return r < 0 ? r : guest_run(&v->guest);
}

/* -- what is known of the machine's state -- */

static void state_take(Vmm *v, State *ret)
{
        *ret = (State) {
                .ram_size = v->guest.size,
                .steps = guest_header(&v->guest)->steps,
                .ioas = v->iommu.ioas,
                .n_devices = v->guest.n_devices,
                .has_checksum = v->checksum,
        };
        for (size_t i = 0; i < ret->n_devices; i++) {
                memcpy(ret->devices[i].bdf, v->devices[i].bdf, sizeof(ret->devices[i].bdf));
                ret->devices[i].rounds = v->devices[i].area->rounds;
                ret->devices[i].latched = v->devices[i].latched;
        }
        if (v->checksum)
                ret->checksum = guest_checksum(&v->guest);
}

/* Is RAM, before anything runs again, what it was at quiesce? */
static bool state_verify(Vmm *v, const State *then, struct json_object *findings)
{
        State now;
        bool same;

        state_take(v, &now);
        same = now.ram_size == then->ram_size && now.steps == then->steps &&
               now.n_devices == then->n_devices;
        for (size_t i = 0; same && i < now.n_devices; i++)
                same = now.devices[i].rounds == then->devices[i].rounds;
        json_object_object_add(findings, "stateSame", json_object_new_boolean(same));
        json_object_object_add(findings, "stepsAtQuiesce", json_object_new_int64((int64_t) then->steps));
        if (then->has_checksum && now.has_checksum) {
                json_object_object_add(findings, "checksumSame",
                                       json_object_new_boolean(then->checksum == now.checksum));
                same = same && then->checksum == now.checksum;
        }
        return same;
}

/* The guest runs; when its devices have done a round, verify_done() tells what was found. */
static void verify_begin(Vmm *v, const char *event, struct json_object *findings)
{
        v->running_usec = luvfio_now();
        json_object_put(v->verify);
        v->verify = findings;
        v->verify_event = event;
}

static void verify_done(Vmm *v)
{
        struct json_object *findings = v->verify;

        v->verify = NULL;
        if (luvfio_resumed(v->l, v->running_usec) < 0)
                log_info("%s", luvfio_get_error(v->l));
        json_object_object_add(findings, "vcpusRunningUSec",
                               json_object_new_int64((int64_t) v->running_usec));
        json_object_object_add(findings, "ok",
                               json_object_new_boolean(guest_header(&v->guest)->errors == 0));
        report(v->report, v->verify_event, v->name, &v->guest, findings);
}

/* -- after the jump -- */

/* When a step of coming back was done, for those who measure it. */
static void note_time(struct json_object *findings, const char *name)
{
        json_object_object_add(findings, name, json_object_new_int64((int64_t) luvfio_now()));
}

static int retrieve(Vmm *v, const char *name, enum luvfio_outcome *ret_outcome, struct json_object *outcomes)
{
        const struct luvfio_fd *info;
        int fd;

        fd = luvfio_retrieve(v->l, name, &info);
        if (fd < 0)
                return log_error(fd, "%s", luvfio_get_error(v->l));
        *ret_outcome = info->outcome;
        json_object_object_add(outcomes, name,
                               json_object_new_string(luvfio_outcome_to_string(info->outcome)));
        return fd;
}

static int resume_iommu(Vmm *v, struct json_object *outcomes)
{
        const struct luvfio_fd *info = luvfio_find_fd(v->l, "iommu");
        enum luvfio_outcome outcome = LUVFIO_OUTCOME_REBUILT;

        if (info && info->outcome != LUVFIO_OUTCOME_REBUILT) {
                v->iommu.fd = retrieve(v, "iommu", &outcome, outcomes);
                v->iommu.ioas = v->quiesced.ioas;
                return v->iommu.fd < 0 ? v->iommu.fd : 0;
        }
        json_object_object_add(outcomes, "iommu", json_object_new_string("rebuilt"));
        return iommu_create(v);
}

static int resume_device(Vmm *v, Device *d, uint64_t rounds, bool latched, struct json_object *outcomes)
{
        enum luvfio_outcome outcome = LUVFIO_OUTCOME_REBUILT;
        char name[32];
        int r;

        snprintf(name, sizeof(name), "vfio-%s", d->bdf);
        d->fd = retrieve(v, name, &outcome, outcomes);
        if (d->fd < 0)
                return d->fd;
        r = device_identify(d);
        if (r >= 0 && !v->simulated && outcome != LUVFIO_OUTCOME_PRESERVED) {
                /* It knows neither an iommufd nor an address space. */
                if (v->iommu.ioas == 0)
                        r = iommu_map(&v->iommu, v->guest.ram_fd, v->guest.size);
                if (r >= 0)
                        r = device_attach(d, &v->iommu);
        }
        if (r >= 0 && !v->simulated)
                r = device_setup(d);
        if (r >= 0)
                r = device_interrupts_on(d, VFIO_PCI_MSIX_IRQ_INDEX, latched ? 0 : 1);
        if (r < 0)
                return r;
        d->latched = latched;
        if (outcome != LUVFIO_OUTCOME_RESET)
                r = device_restart(d);
        else {
                d->area->listening = 0;
                r = d->driver->start(d);
        }
        if (r >= 0 && d->driver->kept && rounds > 0)
                r = d->driver->kept(d, rounds);
        return r;
}

static int resume_machine(Vmm *v, struct json_object *findings)
{
        struct json_object *outcomes = json_object_new_object();
        _cleanup_close_ int state_fd = -EBADF;
        enum luvfio_outcome outcome = LUVFIO_OUTCOME_REBUILT;
        State *state = &v->quiesced;
        int r;

        json_object_object_add(findings, "outcomes", outcomes);
        json_object_object_add(findings, "generation",
                               json_object_new_int64((int64_t) luvfio_get_generation(v->l)));

        note_time(findings, "resumeUSec");
        /* RAM first: everything else refers to it. */
        v->guest.ram_fd = retrieve(v, "ram", &outcome, outcomes);
        if (v->guest.ram_fd < 0)
                return v->guest.ram_fd;
        state_fd = retrieve(v, "state", &outcome, outcomes);
        if (state_fd < 0)
                return state_fd;
        r = state_read(state_fd, state);
        if (r < 0)
                return r;

        /* The machine is what the document says, not what the command line says now. */
        v->guest.n_devices = state->n_devices;
        for (size_t i = 0; i < state->n_devices; i++) {
                memcpy(v->devices[i].bdf, state->devices[i].bdf, sizeof(v->devices[i].bdf));
                v->devices[i].driver = v->simulated ? &simulated_driver : NULL;
        }
        r = guest_map_ram(&v->guest, state->ram_size);
        if (r < 0)
                return r;
        note_time(findings, "ramRetrievedUSec");
        if (!state_verify(v, state, findings))
                return log_error(-EBADMSG, "machine '%s': guest RAM is not what it was at quiesce", v->name);
        note_time(findings, "ramVerifiedUSec");

        if (state->n_devices > 0)
                r = resume_iommu(v, outcomes);
        for (size_t i = 0; r >= 0 && i < state->n_devices; i++)
                r = resume_device(v, &v->devices[i], state->devices[i].rounds, state->devices[i].latched,
                                  outcomes);
        if (r < 0)
                return r;
        note_time(findings, "devicesRebuiltUSec");
        return guest_run(&v->guest);
}

/* -- events of luvfiod -- */

static int preserve(Vmm *v, const char *name, enum luvfio_kind kind, int fd, bool again)
{
        int r;

        if (!again && luvfio_find_fd(v->l, name))
                return 0;
        r = luvfio_preserve(v->l, name, kind, fd, NULL);
        if (r < 0)
                return log_error(r, "%s", luvfio_get_error(v->l));
        return 0;
}

/* Everything that luvfiod does not hold yet. It may be done at any time while no update is under way, best
 * at once: luvfiod's check can then look at all of it. */
static int preserve_all(Vmm *v)
{
        char name[32];
        int r;

        r = preserve(v, "ram", LUVFIO_KIND_MEMFD, v->guest.ram_fd, false);
        if (r >= 0 && v->guest.n_devices > 0) {
                r = preserve(v, "iommu", LUVFIO_KIND_IOMMUFD, v->iommu.fd, v->iommu_is_new);
                if (r >= 0)
                        v->iommu_is_new = false;
        }
        for (size_t i = 0; r >= 0 && i < v->guest.n_devices; i++) {
                snprintf(name, sizeof(name), "vfio-%s", v->devices[i].bdf);
                r = preserve(v, name, LUVFIO_KIND_VFIO, v->devices[i].fd, false);
        }
        return r;
}

static void on_attached(struct luvfio *l, const struct luvfio_event *event, void *userdata)
{
        Vmm *v = userdata;

        log_info("machine '%s': attached to luvfiod, state %s", v->name,
                 luvfio_state_to_string(event->state));
        if (event->state == LUVFIO_STATE_RUNNING && v->guest.ram)
                (void) preserve_all(v);
}

static void on_lost(struct luvfio *l, const char *reason, void *userdata)
{
        log_info("machine '%s': %s", ((Vmm *) userdata)->name, reason);
}

static void on_prepare(struct luvfio *l, const struct luvfio_event *event, void *userdata)
{
        Vmm *v = userdata;

        if (preserve_all(v) >= 0 && luvfio_prepared(l) < 0)
                log_info("%s", luvfio_get_error(l));
}

static void on_quiesce(struct luvfio *l, const struct luvfio_event *event, void *userdata)
{
        _cleanup_close_ int state_fd = -EBADF;
        uint64_t stopped_usec = luvfio_now();
        struct json_object *more;
        Vmm *v = userdata;

        v->quiesced = (State) {};

        /* Not answered if it does not work: luvfiod gives the update up at its deadline, and `abort` comes.
         */
        if (machine_stop(v) < 0)
                return;
        state_take(v, &v->quiesced);
        if (state_write(&v->quiesced, &state_fd) < 0 ||
            preserve(v, "state", LUVFIO_KIND_STATE, state_fd, true) < 0)
                return;
        if (luvfio_quiesced(l, stopped_usec) < 0)
                log_info("%s", luvfio_get_error(l));
        more = json_object_new_object();
        json_object_object_add(more, "vcpusStoppedUSec", json_object_new_int64((int64_t) stopped_usec));
        report(v->report, "quiesced", v->name, &v->guest, more);
}

static void on_commit(struct luvfio *l, const struct luvfio_event *event, void *userdata)
{
        if (luvfio_committed(l) < 0)
                log_info("%s", luvfio_get_error(l));
}

static void on_abort(struct luvfio *l, const struct luvfio_event *event, void *userdata)
{
        struct json_object *findings;
        Vmm *v = userdata;

        log_info("machine '%s': update aborted: %s", v->name, strempty(event->reason));
        if (v->guest.running) {
                /* It was not stopped yet, or has been told before. */
                if (!v->verify && luvfio_resumed(l, 0) < 0)
                        log_info("%s", luvfio_get_error(l));
                return;
        }
        findings = json_object_new_object();
        json_object_object_add(findings, "reason", json_object_new_string(strempty(event->reason)));
        if (v->quiesced.ram_size != 0 && !state_verify(v, &v->quiesced, findings)) {
                json_object_put(findings);
                fail(v, "guest RAM has changed while the guest stood");
        } else if (machine_continue(v) < 0) {
                json_object_put(findings);
                fail(v, "the machine could not be continued");
        } else
                verify_begin(v, "aborted", findings);
}

static void on_resume(struct luvfio *l, const struct luvfio_event *event, void *userdata)
{
        struct json_object *findings;
        Vmm *v = userdata;

        if (v->guest.running) {
                if (!v->verify && luvfio_resumed(l, v->running_usec) < 0)
                        log_info("%s", luvfio_get_error(l));
                return;
        }
        findings = json_object_new_object();
        if (resume_machine(v, findings) < 0) {
                json_object_put(findings);
                fail(v, "the machine could not be resumed");
        } else
                verify_begin(v, "resumed", findings);
}

static void on_finished(struct luvfio *l, const struct luvfio_event *event, void *userdata)
{
        Vmm *v = userdata;

        /* What was rebuilt is new to luvfiod. */
        (void) preserve_all(v);
        report(v->report, "finished", v->name, &v->guest, NULL);
}

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

/* -- running -- */

static int register_machine(Vmm *v)
{
        int r;

        r = luvfio_new(&v->l, v->name);
        if (r < 0)
                return log_error(r, "machine '%s': %s", v->name,
                                 r == -EINVAL ? "the name breaks the rules" : strerror(-r));
        r = luvfio_set_handlers(v->l, &handlers, v);
        if (r >= 0)
                r = luvfio_set_vmm(v->l, "luvfio-example-vmm " LUVFIO_VERSION);
        if (r >= 0 && v->secret_file) {
                r = luvfio_load_secret(v->l, v->secret_file);
                if (r == -ENOENT)
                        r = 0;
        }
        if (r >= 0)
                r = luvfio_register(v->l);
        if (r >= 0 && v->secret_file)
                r = luvfio_save_secret(v->l, v->secret_file);
        if (r < 0)
                return log_error(r, "%s", luvfio_get_error(v->l));
        return 0;
}

static int loop(Vmm *v)
{
        _cleanup_close_ int signal_fd = -EBADF;
        struct signalfd_siginfo si;
        eventfd_t count;
        sigset_t mask;

        (void) sigemptyset(&mask);
        (void) sigaddset(&mask, SIGTERM);
        (void) sigaddset(&mask, SIGINT);
        (void) sigaddset(&mask, SIGUSR1);
        (void) sigprocmask(SIG_BLOCK, &mask, NULL);
        signal_fd = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
        if (signal_fd < 0)
                return log_error(negative_errno(), "signalfd: %m");

        while (!v->quit) {
                struct pollfd p[] = {
                        { .fd = signal_fd, .events = POLLIN },
                        { .fd = luvfio_get_fd(v->l), .events = POLLIN },
                        { .fd = v->guest.fail_fd, .events = POLLIN },
                        { .fd = v->verify ? v->guest.round_fd : -1, .events = POLLIN },
                };

                if (poll(p, ELEMENTSOF(p), -1) < 0)
                        return log_error(negative_errno(), "poll: %m");
                /* What goes wrong with the connection is told by lost(). */
                if (p[1].revents)
                        (void) luvfio_process(v->l);
                if (p[2].revents && eventfd_read(v->guest.fail_fd, &count) == 0)
                        fail(v, "a device does not work");
                else if (p[3].revents && v->verify)
                        verify_done(v);
                if (p[0].revents && read(signal_fd, &si, sizeof(si)) == sizeof(si)) {
                        if (si.ssi_signo == SIGUSR1)
                                report(v->report, "status", v->name, &v->guest, NULL);
                        else
                                v->quit = true;
                }
        }
        return v->failed ? -EIO : 0;
}

static int run(Vmm *v)
{
        int r, state;

        r = register_machine(v);
        if (r < 0)
                return r;
        state = luvfio_get_state(v->l);
        if (state != LUVFIO_STATE_RESTORING && state != LUVFIO_STATE_RESUMING) {
                r = machine_create(v);
                if (r >= 0)
                        r = guest_run(&v->guest);
                if (r >= 0)
                        r = preserve_all(v);
                if (r < 0)
                        return r;
                report(v->report, "started", v->name, &v->guest, NULL);
        }
        (void) sd_notify(false, "READY=1");
        r = loop(v);

        /* Ended on purpose: the machine is switched off. A VMM that dies is not withdrawn. */
        if (r >= 0 && luvfio_withdraw(v->l) < 0)
                log_info("%s", luvfio_get_error(v->l));
        return r;
}

static int selftest_rounds(Device *d, unsigned n, const char *what)
{
        int r = 0;

        for (unsigned i = 0; r >= 0 && i < n; i++) {
                r = d->driver->round(d, d->area->rounds + 1);
                if (r >= 0)
                        d->area->rounds++;
        }
        printf("%s %s %s: %u rounds %s, %llu interrupts\n", r < 0 ? "FAIL" : "PASS", d->driver->name, d->bdf,
               n, what, (unsigned long long) d->area->interrupts);
        return r;
}

/* Each device without luvfiod: running, gone on after an abort, started again after a reset. */
static int selftest(Vmm *v)
{
        int r;

        r = machine_create(v);
        for (size_t i = 0; r >= 0 && i < v->guest.n_devices; i++)
                r = selftest_rounds(&v->devices[i], 50, "after start");
        if (r >= 0)
                r = machine_stop(v);
        if (r >= 0)
                r = machine_continue(v);
        if (r >= 0)
                r = guest_stop(&v->guest);
        for (size_t i = 0; r >= 0 && i < v->guest.n_devices; i++)
                r = selftest_rounds(&v->devices[i], 50, "after stop and restart");
        if (r >= 0)
                r = machine_stop(v);
        for (size_t i = 0; r >= 0 && i < v->guest.n_devices; i++) {
                Device *d = &v->devices[i];

                r = v->simulated ? 0 : device_reset(d);
                if (r >= 0)
                        r = device_interrupts_on(d, VFIO_PCI_MSIX_IRQ_INDEX, 1);
                if (r >= 0)
                        r = d->driver->start(d);
                if (r >= 0 && d->driver->kept)
                        r = d->driver->kept(d, d->area->rounds);
                if (r >= 0)
                        r = selftest_rounds(d, 50, "after reset");
        }
        printf("%s selftest\n", r < 0 ? "FAIL" : "PASS");
        return r;
}

static void usage(FILE *f)
{
        fprintf(f, "Usage: luvfio-example-vmm --name NAME [OPTIONS]\n\n"
                   "A machine that takes part in live updates of the host kernel; see the VMM author's "
                   "guide.\n\n"
                   "  --name NAME               of the machine\n"
                   "  --memory MIB              guest RAM (default 256)\n"
                   "  --device BDF              a PCI device (0000:00:03.0) bound to vfio-pci, igb or NVMe; "
                   "repeatable.\n"
                   "                            The last block of an NVMe namespace is overwritten\n"
                   "  --simulated-device BDF    a stand-in for one, for luvfiod --simulate\n"
                   "  --no-device               RAM alone\n"
                   "  --report FILE             what happens, one JSON object a line (also on stdout); "
                   "SIGUSR1 adds one\n"
                   "  --secret-file FILE        keeps the machine's secret, for a VMM that changes its "
                   "systemd unit\n"
                   "  --no-checksum             leave out the checksum over RAM at quiesce and resume\n"
                   "  --selftest                try the devices without luvfiod and exit\n"
                   "  --help, --version\n");
}

static int add_device(Vmm *v, const char *bdf, bool simulated)
{
        Device *d;

        if (strlen(bdf) != STRLEN("0000:00:00.0"))
                return log_error(-EINVAL, "'%s' is no PCI address of the form 0000:00:03.0", bdf);
        if (v->guest.n_devices == DEVICES_MAX)
                return log_error(-E2BIG, "more than %u devices", DEVICES_MAX);
        if (v->guest.n_devices > 0 && v->simulated != simulated)
                return log_error(-EINVAL, "simulated and real devices in one machine");
        v->simulated = simulated;
        d = &v->devices[v->guest.n_devices++];
        memcpy(d->bdf, bdf, STRLEN("0000:00:00.0"));
        d->driver = simulated ? &simulated_driver : NULL;
        return 0;
}

int main(int argc, char **argv)
{
        enum { NAME = 256, MEMORY, DEVICE, SIMULATED, NO_DEVICE, REPORT, SECRET, NO_CHECKSUM, SELFTEST };
        static const struct option options[] = {
                { "name", required_argument, NULL, NAME },
                { "memory", required_argument, NULL, MEMORY },
                { "device", required_argument, NULL, DEVICE },
                { "simulated-device", required_argument, NULL, SIMULATED },
                { "no-device", no_argument, NULL, NO_DEVICE },
                { "report", required_argument, NULL, REPORT },
                { "secret-file", required_argument, NULL, SECRET },
                { "no-checksum", no_argument, NULL, NO_CHECKSUM },
                { "selftest", no_argument, NULL, SELFTEST },
                { "help", no_argument, NULL, 'h' },
                { "version", no_argument, NULL, 'V' },
                {},
        };
        static Vmm v = { .memory = 256 * MIB, .checksum = true, .iommu.fd = -EBADF };
        bool no_device = false, test = false;
        int c, r = 0;

        v.guest = (Guest) { .ram_fd = -EBADF, .kick_fd = -EBADF, .fail_fd = -EBADF, .round_fd = -EBADF };
        v.guest.devices = v.devices;
        for (size_t i = 0; i < DEVICES_MAX; i++) {
                v.devices[i].fd = v.devices[i].irq_fd = -EBADF;
                v.devices[i].irq_type = -1;
        }

        while (r >= 0 && (c = getopt_long(argc, argv, "h", options, NULL)) >= 0)
                switch (c) {
                case NAME:
                        v.name = optarg;
                        break;
                case MEMORY:
                        v.memory = strtoull(optarg, NULL, 10) * MIB;
                        if (v.memory < MEMORY_MIN_MIB * MIB)
                                r = log_error(-EINVAL, "--memory %s: at least %d MiB", optarg,
                                              MEMORY_MIN_MIB);
                        break;
                case DEVICE:
                        r = add_device(&v, optarg, false);
                        break;
                case SIMULATED:
                        r = add_device(&v, optarg, true);
                        break;
                case NO_DEVICE:
                        no_device = true;
                        break;
                case REPORT:
                        v.report = optarg;
                        break;
                case SECRET:
                        v.secret_file = optarg;
                        break;
                case NO_CHECKSUM:
                        v.checksum = false;
                        break;
                case SELFTEST:
                        test = true;
                        break;
                case 'h':
                        usage(stdout);
                        return 0;
                case 'V':
                        puts("luvfio-example-vmm " LUVFIO_VERSION);
                        return 0;
                default:
                        r = -EINVAL;
                }
        if (r >= 0 && (optind != argc || (!v.name && !test) || no_device == (v.guest.n_devices > 0)))
                r = log_error(-EINVAL, "wanted are --name, and --device or --no-device; see --help");
        if (r < 0)
                return 2;

        r = test ? selftest(&v) : run(&v);

        luvfio_unref(v.l);
        (void) guest_stop(&v.guest);
        for (size_t i = 0; i < v.guest.n_devices; i++)
                device_close(&v.devices[i]);
        v.iommu.fd = safe_close(v.iommu.fd);
        guest_done(&v.guest);
        json_object_put(v.verify);
        return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
