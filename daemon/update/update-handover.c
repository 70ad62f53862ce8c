/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <signal.h>
#include <sys/inotify.h>
#include <sys/pidfd.h>
#include <poll.h>
#include <unistd.h>

#include "preflight/preflight-processes.h"
#include "report/messages.h"
#include "update/update-private.h"
#include "util/cgroup.h"
#include "util/io.h"
#include "util/log.h"
#include "util/string-util.h"
#include "util/time-util.h"

/* Handing over: all VMMs commit, are frozen, and the kernel is left. */

static int write_freeze(const char *cgroup, const char *value)
{
        _cleanup_close_ int dir_fd = luv_cgroup_open(cgroup);

        if (dir_fd < 0)
                return dir_fd;
        return luv_write_attribute(dir_fd, "cgroup.freeze", value);
}

int luv_update_thaw(const char *cgroup)
{
        int r = write_freeze(cgroup, "0");

        /* Gone with all its processes: nothing stands. */
        if (r == -ENOENT || r == -ENODEV)
                return 0;
        if (r < 0)
                luv_log_error(r, "The control group %s cannot be thawed; \"systemctl thaw\" may help",
                              cgroup);
        return r;
}

static int undo_freeze(Update *u)
{
        int r = 0;

        for (char **c = u->frozen; c && *c; c++) {
                int k = luv_update_thaw(*c);

                if (r >= 0)
                        r = k;
        }
        u->frozen = luv_strv_free(u->frozen);
        u->n_frozen = 0;
        return r;
}

/* "frozen 1" once the last task stands. */
static int is_frozen(const char *cgroup)
{
        _cleanup_close_ int dir_fd = luv_cgroup_open(cgroup);
        _cleanup_free_ char *text = NULL;
        int r;

        if (dir_fd < 0)
                return dir_fd;
        r = luv_read_line_file(dir_fd, "cgroup.events", &text);
        if (r < 0)
                return r;
        return strstr(text, "frozen 1") ? 1 : 0;
}

/* The jump. */

static int on_jump(sd_event_source *s, void *userdata);

static void jump_failed(Update *u)
{
        const char *refusal = u->refusal;

        luv_update_fail(u, NULL, "the kernel refused the jump: %s%s%s",
                        u->jump_error == -EBUSY     ? "a device or file that is preserved is busy"
                        : u->jump_error == -ENOEXEC ? "an image that kexec_load(2) loaded took the place of "
                                                      "luvfiod's, and would not take over what is preserved"
                        : u->jump_error == -EINVAL  ? "the image that was loaded is not there any more"
                                                    : strerror(-u->jump_error),
                        refusal ? "; " : "", refusal ? refusal : "");
}

static void on_refusal(const PluginResult *result, void *userdata)
{
        DeviceStep *d = userdata;
        Update *u = d->um->update;

        d->call = luv_plugin_call_free(d->call);
        if (result->error < 0 && !u->refusal)
                u->refusal = luv_strf("device %s of machine %s: %s",
                                      d->um->machine->devices[d->device].address, d->um->machine->name,
                                      result->reason ? result->reason : strerror(-result->error));
        if (--u->n_refusals_pending == 0)
                jump_failed(u);
}

/* The kernel gives a number; which device it was, the plugins can see. Short: machines stand. */
static void ask_for_refusal(Update *u)
{
        size_t n = luv_machine_registry_size(u->config.machines), n_devices = 0;

        for (size_t i = 0; i < n; i++)
                n_devices += luv_machine_registry_at(u->config.machines, i)->n_devices;
        if (n_devices > 0)
                u->refusals = calloc(n_devices, sizeof(DeviceStep));
        for (size_t i = 0; i < n && u->refusals; i++) {
                Machine *m = luv_machine_registry_at(u->config.machines, i);
                UpdateMachine *um = m->update;

                for (size_t k = 0; um && um->taking_part && !um->sacrificed && k < m->n_devices; k++) {
                        DeviceStep *d = u->refusals + u->n_refusals;

                        *d = (DeviceStep) { .um = um, .device = k };
                        if (!m->devices[k].plugin ||
                            luv_plugin_call(u->config.plugins, PLUGIN_OP_QUIESCED, m->devices[k].plugin,
                                            m->devices[k].address, NULL,
                                            luv_machine_device_preserved(m, m->devices[k].address),
                                            luv_now_usec() + USEC_PER_SEC / 2, on_refusal, d, &d->call) < 0)
                                continue;
                        u->n_refusals++;
                        u->n_refusals_pending++;
                }
        }
        if (u->n_refusals_pending == 0)
                jump_failed(u);
}

static int end_machine(Machine *m, int **kept, char ***names, size_t *n)
{
        int *fds;

        if (m->owner.pidfd < 0)
                return 0;
        fds = reallocarray(*kept, *n + 1, sizeof(int));
        if (!fds)
                return -ENOMEM;
        *kept = fds;
        fds[*n] = m->owner.pidfd;
        (*n)++;
        return luv_strv_extend(names, "old-vmm");
}

/* The old VMMs are ended by the next run of the daemon: until the sessions are frozen there is a way back.
 */
static int simulated_jump(Update *u)
{
        size_t n = luv_machine_registry_size(u->config.machines), n_kept = 0;
        _cleanup_strv_ char **names = NULL;
        _cleanup_free_ int *kept = NULL;
        int r = 0;

        kept = calloc(u->config.n_kept + 1, sizeof(int));
        if (!kept)
                return -ENOMEM;
        for (size_t i = 0; i < u->config.n_kept && r >= 0; i++) {
                kept[n_kept++] = u->config.kept[i];
                r = luv_strv_extend(&names, u->config.kept_names[i]);
        }
        for (size_t i = 0; i < n && r >= 0; i++)
                r = end_machine(luv_machine_registry_at(u->config.machines, i), &kept, &names, &n_kept);
        if (r < 0)
                return r;
        return luv_luo_jump(u->config.luo, u->config.argv, kept, names, n_kept);
}

void luv_update_end_old_machines(Update *u)
{
        int pidfd;

        while ((pidfd = luv_fd_store_take(u->config.store, "old-vmm")) >= 0) {
                struct pollfd p = { .fd = pidfd, .events = POLLIN };

                if (pidfd_send_signal(pidfd, SIGKILL, NULL, 0) < 0 && errno != ESRCH)
                        luv_log_error(negative_errno(), "A VMM of before the jump cannot be ended");
                else
                        (void) poll(&p, 1, 5000);
                safe_close(pidfd);
        }
}

static int on_jump(sd_event_source *s, void *userdata)
{
        Update *u = userdata;

        u->jump_source = sd_event_source_disable_unref(u->jump_source);
        if (u->callbacks.jumping)
                u->callbacks.jumping(u->userdata);
        if (u->config.simulated) {
                u->jump_error = simulated_jump(u);
        } else {
                sync();
                u->jump_error = luv_luo_jump(u->config.luo, NULL, NULL, NULL, 0);
        }
        luv_log_error(u->jump_error, "The kernel was not left");
        ask_for_refusal(u);
        return 0;
}

static void on_host_record(int error, void *userdata);

static int preserve_record(Update *u, int fd, uint64_t token)
{
        return luv_luo_session_preserve(u->host_session, fd, token, luv_now_usec() + RETRIEVE_DEADLINE_USEC,
                                        on_host_record, u, &u->host_call);
}

static void on_host_record(int error, void *userdata)
{
        Update *u = userdata;
        int r;

        u->host_call = luv_luo_call_free(u->host_call);
        if (error < 0) {
                luv_update_fail(u, NULL, "the host's record cannot be preserved: %s", strerror(-error));
                return;
        }
        if (u->host_copy_fd >= 0) {
                r = preserve_record(u, u->host_copy_fd, LUVFIO_HOST_COPY_TOKEN);
                u->host_copy_fd = safe_close(u->host_copy_fd);
                if (r < 0)
                        luv_update_fail(u, NULL, "the host's record cannot be preserved: %s", strerror(-r));
                return;
        }
        /* When everything else has been said. */
        r = sd_event_add_defer(u->config.event, &u->jump_source, on_jump, u);
        if (r >= 0)
                r = sd_event_source_set_priority(u->jump_source, SD_EVENT_PRIORITY_IDLE);
        if (r < 0)
                luv_update_fail(u, NULL, "the event loop failed: %s", strerror(-r));
}

static int write_host_record(Update *u, int *ret_fd, int *ret_copy_fd)
{
        _cleanup_close_ int fd = -EBADF;
        size_t n = luv_machine_registry_size(u->config.machines), k = 0;
        _cleanup_free_ SessionRecord *sessions = NULL;
        _cleanup_free_ char *boot_id = NULL;
        HostRecord h;
        int r;

        r = luv_boot_id(&boot_id);
        if (r < 0)
                return r;
        sessions = calloc(MAX(n, (size_t) 1), sizeof(SessionRecord));
        if (!sessions)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++) {
                Machine *m = luv_machine_registry_at(u->config.machines, i);
                UpdateMachine *um = m->update;

                if (um && um->taking_part && !um->sacrificed)
                        sessions[k++] = (SessionRecord) {
                                .machine = m->name,
                                .session = m->session_name,
                                .serial = m->serial,
                        };
        }
        luv_timeline_end(&u->timeline, luv_update_state_to_string(UPDATE_HANDING_OVER), NULL,
                         luv_now_usec());
        r = luv_timeline_anchor(&u->timeline.outgoing);
        if (r < 0)
                return r;
        h = (HostRecord) {
                .update_id = u->id,
                .from_kernel = u->from_kernel,
                .to_kernel = u->to_kernel,
                .boot_id = boot_id,
                .timeline = u->timeline,
                .units = u->units_stopped,
                .sessions = sessions,
                .n_sessions = k,
        };
        r = luv_host_record_write(&h, &fd);
        if (r < 0)
                return r;
        r = luv_host_record_write(&h, ret_copy_fd);
        if (r < 0)
                return r;
        *ret_fd = TAKE_FD(fd);
        return 0;
}

static void preserve_host_record(Update *u)
{
        _cleanup_close_ int fd = -EBADF;
        int r;

        luv_log_struct(LOG_NOTICE,
                       &(LogFields) { .message_id = LUVFIO_MESSAGE_UPDATE_JUMP, .update_id = u->id },
                       "Leaving kernel %s for %s", u->from_kernel, u->to_kernel);
        u->host_copy_fd = safe_close(u->host_copy_fd);
        r = write_host_record(u, &fd, &u->host_copy_fd);
        if (r >= 0)
                r = preserve_record(u, fd, LUVFIO_HOST_TOKEN);
        if (r < 0)
                luv_update_fail(u, NULL, "the host's record cannot be written: %s", strerror(-r));
}

/* Freezing. */

static void check_frozen(Update *u)
{
        for (char **c = u->frozen; c && *c; c++) {
                int r = is_frozen(*c);

                if (r < 0) {
                        luv_update_fail(u, NULL, "the control group %s cannot be frozen: %s", *c,
                                        strerror(-r));
                        return;
                }
                if (r == 0)
                        return;
        }
        for (size_t i = 0; i < u->n_frozen && u->freeze_sources; i++)
                u->freeze_sources[i] = sd_event_source_disable_unref(u->freeze_sources[i]);
        luv_update_clear_barrier(u);
        preserve_host_record(u);
}

static int on_cgroup_events(sd_event_source *s, const struct inotify_event *event, void *userdata)
{
        check_frozen(userdata);
        return 0;
}

static int on_freeze_late(sd_event_source *s, uint64_t usec, void *userdata)
{
        luv_update_fail(userdata, NULL, "the machines' control groups did not freeze in time");
        return 0;
}

static int watch_cgroup(Update *u, size_t i)
{
        _cleanup_free_ char *path = luv_strf("/sys/fs/cgroup%s/cgroup.events", u->frozen[i]);

        if (!path)
                return -ENOMEM;
        return sd_event_add_inotify(u->config.event, u->freeze_sources + i, path, IN_MODIFY,
                                    on_cgroup_events, u);
}

/* Each unit once, however many machines are in it. */
static int collect_cgroups(Update *u)
{
        size_t n = luv_machine_registry_size(u->config.machines);

        for (size_t i = 0; i < n; i++) {
                Machine *m = luv_machine_registry_at(u->config.machines, i);
                UpdateMachine *um = m->update;
                _cleanup_free_ char *unit = NULL;

                if (!um || !um->taking_part || um->sacrificed || !m->owner.cgroup)
                        continue;
                unit = luv_cgroup_of_unit(m->owner.cgroup);
                if (!unit)
                        return -ENOMEM;
                if (streq(unit, "/"))
                        return -EPERM;
                if (!luv_strv_contains(u->frozen, unit) && luv_strv_extend(&u->frozen, unit) < 0)
                        return -ENOMEM;
        }
        u->n_frozen = luv_strv_length(u->frozen);
        return 0;
}

static void freeze(Update *u)
{
        int r;

        r = luv_update_push_undo(u, "freezing machines", undo_freeze);
        if (r >= 0)
                r = collect_cgroups(u);
        /* Whoever comes after us has to find what is frozen, so it is noted first. */
        if (r >= 0)
                r = luv_update_write_journal(u);
        if (r < 0) {
                luv_update_fail(u, NULL, "machines cannot be frozen: %s", strerror(-r));
                return;
        }
        if (u->n_frozen == 0) {
                preserve_host_record(u);
                return;
        }
        u->freeze_sources = calloc(u->n_frozen, sizeof(sd_event_source *));
        r = u->freeze_sources ? 0 : -ENOMEM;
        for (size_t i = 0; i < u->n_frozen && r >= 0; i++) {
                r = watch_cgroup(u, i);
                if (r >= 0)
                        r = write_freeze(u->frozen[i], "1");
                if (r < 0)
                        luv_update_fail(u, NULL, "the control group %s cannot be frozen: %s", u->frozen[i],
                                        strerror(-r));
        }
        if (r < 0) {
                luv_update_fail(u, NULL, "machines cannot be frozen: %s", strerror(-r));
                return;
        }
        r = sd_event_add_time_relative(u->config.event, &u->deadline_source, CLOCK_BOOTTIME,
                                       FREEZE_DEADLINE_USEC, USEC_PER_MSEC, on_freeze_late, u);
        if (r < 0) {
                luv_update_fail(u, NULL, "the event loop failed: %s", strerror(-r));
                return;
        }
        check_frozen(u);
}

static void on_committed(Update *u)
{
        if (u->config.simulated)
                preserve_host_record(u);
        else
                freeze(u);
}

void luv_update_hand_over(Update *u)
{
        size_t n = luv_machine_registry_size(u->config.machines);
        uint64_t deadline = luv_now_usec() + COMMIT_DEADLINE_USEC;
        int r;

        /* Where one was left behind at the deadline, the others need a moment all the same. */
        deadline = MAX(deadline, u->deadline);
        r = luv_update_transition(u, UPDATE_HANDING_OVER);
        if (r >= 0)
                r = luv_update_write_journal(u);
        /* Else the same deadline: it is the time that machines may stand. */
        if (r >= 0)
                r = luv_update_set_barrier(u, on_committed, "commit", deadline);
        if (r < 0) {
                luv_update_fail(u, NULL, "handing over cannot begin: %s", strerror(-r));
                return;
        }
        for (size_t i = 0; i < n; i++) {
                Machine *m = luv_machine_registry_at(u->config.machines, i);
                UpdateMachine *um = m->update;

                if (um && um->taking_part && !um->sacrificed) {
                        um->step = STEP_ASKED;
                        luv_update_tell(um, MACHINE_EVENT_COMMIT, NULL);
                }
        }
}
