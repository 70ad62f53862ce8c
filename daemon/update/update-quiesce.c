/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "report/messages.h"
#include "update/update-private.h"
#include "util/log.h"
#include "util/string-util.h"
#include "util/time-util.h"

/* Quiescing: from the first vCPU that stops here every microsecond is the guests'. All machines at the same
 * time. */

/* Interrupts that a VMM has left on are held back by devices that can. Of the others the plugins tell. */
static void latch_interrupts(const Machine *m, bool latch)
{
        for (size_t i = 0; i < m->n_fds; i++) {
                int r;

                if (m->fds[i]->kind != FD_KIND_VFIO)
                        continue;
                r = luv_fd_latch_interrupts(m->fds[i]->fd, latch);
                if (r < 0 && r != -EOPNOTSUPP && r != -ENOTTY)
                        luv_log_error(r, "The interrupts of device %s of machine %s cannot be %s",
                                      m->fds[i]->identity.device, m->name,
                                      latch ? "latched" : "let go again");
        }
}

static int undo_quiesce(Update *u)
{
        size_t n = luv_machine_registry_size(u->config.machines);

        for (size_t i = 0; i < n; i++) {
                Machine *m = luv_machine_registry_at(u->config.machines, i);
                UpdateMachine *um = m->update;

                if (!um || !um->told || um->sacrificed ||
                    (m->state != MACHINE_QUIESCING && m->state != MACHINE_QUIESCED &&
                     m->state != MACHINE_COMMITTED))
                        continue;
                latch_interrupts(m, false);
                luv_machine_set_state(m, MACHINE_ABORTING);
                luv_update_tell(um, MACHINE_EVENT_ABORT, u->reason);
        }
        return 0;
}

static void on_record_preserved(int error, void *userdata)
{
        UpdateMachine *um = userdata;

        um->call = luv_luo_call_free(um->call);
        if (error < 0) {
                luv_update_fail(um->update, um, "cannot preserve the record of machine %s: %s",
                                um->machine->name, strerror(-error));
                return;
        }
        luv_log_struct(LOG_INFO,
                       &(LogFields) {
                                       .message_id = LUVFIO_MESSAGE_MACHINE_QUIESCED,
                                       .update_id = um->update->id,
                                       .machine = um->machine->name,
                                       .session = um->machine->session_name,
                       },
                       "Machine %s stands and is preserved", um->machine->name);
        luv_update_set_step(um, STEP_DONE);
}

static int write_record(Machine *m, int *ret_fd)
{
        _cleanup_free_ FdRecord *fds = NULL;
        _cleanup_free_ DeviceRecord *devices = NULL;
        MachineRecord record;

        fds = calloc(MAX(m->n_fds, (size_t) 1), sizeof(FdRecord));
        devices = calloc(MAX(m->n_devices, (size_t) 1), sizeof(DeviceRecord));
        if (!fds || !devices)
                return -ENOMEM;
        for (size_t i = 0; i < m->n_fds; i++) {
                /* It may not have been bound to an iommufd yet when it was handed over. */
                if (m->fds[i]->kind == FD_KIND_VFIO)
                        m->fds[i]->outcome = luv_machine_fd_outcome(m, m->fds[i]);
                fds[i] = (FdRecord) {
                        .name = m->fds[i]->name,
                        .kind = m->fds[i]->kind,
                        .outcome = m->fds[i]->outcome,
                        .token = m->fds[i]->token,
                        .size = m->fds[i]->identity.size,
                        .device = m->fds[i]->identity.device[0] ? m->fds[i]->identity.device : NULL,
                };
        }
        for (size_t i = 0; i < m->n_devices; i++)
                devices[i] = (DeviceRecord) {
                        .address = m->devices[i].address,
                        .plugin = m->devices[i].plugin,
                        .promise = m->devices[i].promise,
                        .plan = m->devices[i].plan,
                };
        record = (MachineRecord) {
                .name = m->name,
                .secret = m->secret,
                .unit = m->owner.unit,
                .vmm = m->vmm,
                .session = m->session_name,
                .uid = m->owner.uid,
                .generation = m->generation,
                .serial = m->serial,
                .stopped_usec = m->stopped_usec,
                .fds = fds,
                .n_fds = m->n_fds,
                .devices = devices,
                .n_devices = m->n_devices,
        };
        return luv_machine_record_write(&record, ret_fd);
}

/* A device for which more was promised than the kernel keeps of it, now that it has all there is; or NULL.
 */
static const MachineDevice *find_broken_promise(const Machine *m)
{
        for (size_t i = 0; i < m->n_devices; i++) {
                const MachineDevice *d = m->devices + i;

                if (d->promise && !streq(d->promise, "reset") &&
                    !luv_fd_preserved_running(luv_machine_device_preserved(m, d->address)))
                        return d;
        }
        return NULL;
}

/* Its files are in the session and its plugins are content: the record goes in last. */
static void check_quiesced(UpdateMachine *um)
{
        _cleanup_close_ int fd = -EBADF;
        const MachineDevice *broken;
        Machine *m = um->machine;
        int r;

        if (!um->fds_done || um->n_devices_pending > 0 || um->update->aborting || um->sacrificed)
                return;
        broken = find_broken_promise(m);
        if (broken) {
                luv_update_fail_device(
                                um, broken,
                                "device %s of machine %s would be reset, and its plugin promised \"%s\"",
                                broken->address, m->name, broken->promise);
                return;
        }
        r = write_record(m, &fd);
        if (r >= 0)
                r = luv_luo_session_set_cgroup(m->session, NULL);
        if (r >= 0)
                r = luv_luo_session_preserve(m->session, fd, LUVFIO_MACHINE_TOKEN(m->serial),
                                             luv_now_usec() + RETRIEVE_DEADLINE_USEC, on_record_preserved,
                                             um, &um->call);
        if (r < 0)
                luv_update_fail(um->update, um, "cannot write the record of machine %s: %s", m->name,
                                strerror(-r));
}

void luv_update_quiesce_fds_done(UpdateMachine *um)
{
        check_quiesced(um);
}

static void fail_device(DeviceStep *d, const PluginResult *result)
{
        Machine *m = d->um->machine;
        MachineDevice *device = m->devices + d->device;

        (void) luv_free_and_strdup(&device->reason,
                                   result->reason ? result->reason : strerror(-result->error));
        luv_update_fail_device(d->um, device, "device %s of machine %s: %s", device->address, m->name,
                               result->reason ? result->reason : strerror(-result->error));
}

static void on_planned(const PluginResult *result, void *userdata)
{
        DeviceStep *d = userdata;
        UpdateMachine *um = d->um;

        d->call = luv_plugin_call_free(d->call);
        if (result->error < 0) {
                fail_device(d, result);
                return;
        }
        if (luv_free_and_strdup(&um->machine->devices[d->device].plan, result->plan) < 0) {
                luv_update_fail(um->update, um, "out of memory");
                return;
        }
        um->n_devices_pending--;
        check_quiesced(um);
}

static void device_call(DeviceStep *d, PluginOp op, PluginDone done)
{
        Update *u = d->um->update;
        MachineDevice *device = d->um->machine->devices + d->device;
        int r;

        r = luv_plugin_call(u->config.plugins, op, op == PLUGIN_OP_MATCH ? NULL : device->plugin,
                            device->address, NULL,
                            luv_machine_device_preserved(d->um->machine, device->address), u->deadline, done,
                            d, &d->call);
        if (r < 0)
                fail_device(d, &(PluginResult) { .error = r });
}

static void on_device_quiesced(const PluginResult *result, void *userdata)
{
        DeviceStep *d = userdata;

        d->call = luv_plugin_call_free(d->call);
        if (result->error < 0) {
                fail_device(d, result);
                return;
        }
        device_call(d, PLUGIN_OP_PLAN, on_planned);
}

static void on_matched(const PluginResult *result, void *userdata)
{
        DeviceStep *d = userdata;
        MachineDevice *device = d->um->machine->devices + d->device;

        d->call = luv_plugin_call_free(d->call);
        if (result->error < 0) {
                fail_device(d, result);
                return;
        }
        if (luv_free_and_strdup(&device->plugin, result->plugin) < 0 ||
            luv_free_and_strdup(&device->promise, result->promise) < 0) {
                luv_update_fail(d->um->update, d->um, "out of memory");
                return;
        }
        device_call(d, PLUGIN_OP_QUIESCED, on_device_quiesced);
}

/* The VMM says so; the devices themselves are asked. */
static void ask_devices(UpdateMachine *um)
{
        Machine *m = um->machine;

        if (m->n_devices == 0)
                return;
        um->devices = calloc(m->n_devices, sizeof(DeviceStep));
        if (!um->devices) {
                luv_update_fail(um->update, um, "out of memory");
                return;
        }
        um->n_devices = um->n_devices_pending = m->n_devices;
        for (size_t i = 0; i < um->n_devices; i++) {
                DeviceStep *d = um->devices + i;

                *d = (DeviceStep) { .um = um, .device = i };
                /* One that was handed over after the checks has not been asked about. */
                if (m->devices[i].plugin)
                        device_call(d, PLUGIN_OP_QUIESCED, on_device_quiesced);
                else
                        device_call(d, PLUGIN_OP_MATCH, on_matched);
                if (um->update->aborting || um->sacrificed)
                        return;
        }
}

int luv_update_quiesced(Update *u, Machine *m, uint64_t stopped_usec)
{
        UpdateMachine *um = m->update;

        if (luv_update_is_late(m))
                return 0;
        if (m->state != MACHINE_QUIESCING || !um || um->step != STEP_ASKED || u->state != UPDATE_QUIESCING ||
            u->aborting)
                return -EPROTO;
        m->stopped_usec = stopped_usec;
        luv_machine_set_state(m, MACHINE_QUIESCED);
        um->fds_done = false;
        um->step = STEP_WORKING;
        latch_interrupts(m, true);
        ask_devices(um);
        if (u->aborting || um->sacrificed)
                return 0;
        luv_update_queue(um);
        return 0;
}

void luv_update_quiesce(Update *u)
{
        size_t n = luv_machine_registry_size(u->config.machines);
        int r;

        r = luv_update_transition(u, UPDATE_QUIESCING);
        if (r >= 0)
                r = luv_update_push_undo(u, "stopping machines", undo_quiesce);
        if (r >= 0)
                r = luv_update_set_barrier(u, luv_update_hand_over, "quiesce",
                                           luv_now_usec() + u->quiesce_usec);
        if (r < 0) {
                luv_update_fail(u, NULL, "machines cannot be stopped: %s", strerror(-r));
                return;
        }
        for (size_t i = 0; i < n; i++) {
                Machine *m = luv_machine_registry_at(u->config.machines, i);
                UpdateMachine *um = m->update;

                if (!um || !um->taking_part || um->sacrificed)
                        continue;
                if (!m->attached) {
                        luv_update_fail(u, um, "the VMM of machine %s does not watch for events any more",
                                        m->name);
                        if (u->aborting)
                                return;
                        continue;
                }
                um->step = STEP_ASKED;
                luv_machine_set_state(m, MACHINE_QUIESCING);
        }
        /* Noted before the first of them hears of it. */
        if (luv_update_write_journal(u) < 0) {
                luv_update_fail(u, NULL, "the update cannot be noted in %s", u->config.runtime_dir);
                return;
        }
        for (size_t i = 0; i < n; i++) {
                Machine *m = luv_machine_registry_at(u->config.machines, i);

                if (m->state == MACHINE_QUIESCING)
                        luv_update_tell(m->update, MACHINE_EVENT_QUIESCE, NULL);
        }
}
