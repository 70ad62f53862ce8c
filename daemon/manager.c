/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <systemd/sd-event.h>

#include "manager.h"
#include "luo/fd-store.h"
#include "luo/luo.h"
#include "plugin/plugin-client.h"
#include "update/update.h"
#include "util/io.h"
#include "util/log.h"
#include "util/string-util.h"
#include "varlink/idl.h"
#include "varlink/server.h"

#define LISTEN_BACKLOG 512
/* How long clients have for what they were told last. */
#define LEAVE_USEC USEC_PER_SEC

static const char *const interfaces[] = { LUVFIO_HOST_NAME, LUVFIO_MACHINE_NAME };

struct Manager {
        const ManagerOptions *options;
        sd_event *event;
        FdStore *store;
        Luo *luo;
        PluginManager *plugins;
        MachineRegistry *machines;
        Update *update;
        Server *server;
        char *plugin_dir, *notes_dir;
        int listen_fds[ELEMENTSOF(interfaces)]; /* carried over a simulated jump */
        char *listen_names[ELEMENTSOF(interfaces) + 1];
        bool jumped;
        bool stopping;
};

/* The machines' callbacks. */

static void on_machine_state(Machine *machine, MachineState old, void *userdata)
{
        Manager *m = userdata;

        if (m->update)
                luv_update_machine_state_changed(m->update, machine, old);
}

static void on_machine_exited(Machine *machine, void *userdata)
{
        Manager *m = userdata;

        if (m->update)
                luv_update_machine_exited(m->update, machine);
}

static void on_machine_forgotten(Machine *machine, void *userdata)
{
        Manager *m = userdata;

        if (m->server)
                luv_server_machine_forgotten(m->server, machine);
        if (m->update)
                luv_update_machine_forgotten(m->update, machine);
}

static const MachineCallbacks machine_callbacks = {
        .state_changed = on_machine_state,
        .exited = on_machine_exited,
        .forgotten = on_machine_forgotten,
};

/* The update's callbacks are the server's, and ours beside them. */

static void notify_state(Manager *m)
{
        const char *state = luv_update_state_to_string(luv_update_state(m->update));

        (void) sd_notifyf(0, "STATUS=%s, %zu machines", state, luv_machine_registry_size(m->machines));
}

static void on_progress(const UpdateProgress *p, void *userdata)
{
        Manager *m = userdata;

        if (m->update)
                notify_state(m);
        if (m->server)
                luv_server_update_callbacks.progress(p, m->server);
}

/*
 * Connections go before the event loop ends: libsystemd waits without end for a peer that does not read its
 * last message, and spins on one that is half gone.
 */
static int on_leave(sd_event_source *s, void *userdata)
{
        Manager *m = userdata;

        m->server = luv_server_free(m->server);
        return sd_event_exit(m->event, 0);
}

static int on_leave_late(sd_event_source *s, uint64_t usec, void *userdata)
{
        return on_leave(s, userdata);
}

/* As soon as there is nothing else to do: what can be written to clients is written by then. */
static int leave(Manager *m)
{
        sd_event_source *s;
        int r;

        r = sd_event_add_time_relative(m->event, NULL, CLOCK_BOOTTIME, LEAVE_USEC, 0, on_leave_late, m);
        if (r >= 0)
                r = sd_event_add_defer(m->event, &s, on_leave, m);
        if (r < 0)
                return sd_event_exit(m->event, r);
        (void) sd_event_source_set_floating(s, true);
        (void) sd_event_source_set_priority(s, SD_EVENT_PRIORITY_IDLE);
        sd_event_source_unref(s);
        return 0;
}

static void on_ended(const UpdateOutcome *o, void *userdata)
{
        Manager *m = userdata;

        if (m->server)
                luv_server_update_callbacks.ended(o, m->server);
        if (m->stopping && o->end != UPDATE_END_STAGED)
                (void) leave(m);
}

static void on_event(Machine *machine, MachineEvent event, const char *update_id, uint64_t remaining_usec,
                     const char *reason, void *userdata)
{
        Manager *m = userdata;

        if (m->server)
                luv_server_update_callbacks.event(machine, event, update_id, remaining_usec, reason,
                                                  m->server);
}

static void on_settled(Machine *machine, void *userdata)
{
        Manager *m = userdata;

        if (m->server)
                luv_server_update_callbacks.settled(machine, m->server);
}

static void on_inhibitors(PreflightFacts *facts, void *userdata)
{
        Manager *m = userdata;

        if (m->server)
                luv_server_update_callbacks.inhibitors(facts, m->server);
}

static const UpdateCallbacks update_callbacks = {
        .progress = on_progress,
        .ended = on_ended,
        .event = on_event,
        .settled = on_settled,
        .inhibitors = on_inhibitors,
};

/* A staged image makes a plain reboot a kexec: whoever stops us gets it unloaded first, and machines told.
 */
static int on_signal(sd_event_source *s, const struct signalfd_siginfo *si, void *userdata)
{
        Manager *m = userdata;

        (void) sd_notify(0, "STOPPING=1");
        if (m->stopping)
                return 0;
        m->stopping = true;
        luv_log_info("Stopping (signal %u)", si->ssi_signo);
        if (luv_update_abort(m->update, "luvfiod is being stopped") < 0)
                return leave(m);
        (void) sd_notify(0, "STATUS=giving the update up");
        return 0;
}

static int add_signals(Manager *m)
{
        static const int signals[] = { SIGTERM, SIGINT };
        int r;

        for (size_t i = 0; i < ELEMENTSOF(signals); i++) {
                r = sd_event_add_signal(m->event, NULL, signals[i] | SD_EVENT_SIGNAL_PROCMASK, on_signal, m);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* Sessions, machines' files, connections: some fds each. */
static void raise_limits(void)
{
        struct rlimit l;

        if (getrlimit(RLIMIT_NOFILE, &l) < 0)
                return;
        l.rlim_cur = l.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &l) < 0)
                luv_log_error(negative_errno(), "The number of open files cannot be raised");
}

/*
 * For the group that may talk to luvfiod, if it was made. Done here also for sockets that the service
 * manager made: it would fork a process for each and look at its end only when it has started everything
 * that is ready, and after a jump machines stand meanwhile. A simulation may be anybody's, and is then its
 * user's alone.
 */
static int give_to_group(const Manager *m, const char *path)
{
        struct group *g = getgrnam("luvfio");

        if (chmod(path, 0660) < 0)
                return luv_log_error(negative_errno(), "The mode of %s cannot be set", path);
        if (g && chown(path, (uid_t) -1, g->gr_gid) < 0 && !(errno == EPERM && m->options->simulate))
                luv_log_error(negative_errno(), "%s cannot be given to the group luvfio", path);
        return 0;
}

static int make_socket(const Manager *m, const char *name)
{
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        _cleanup_free_ char *path = NULL;
        _cleanup_close_ int fd = -EBADF;

        path = luv_strf("%s/%s", m->options->runtime_dir, name);
        if (!path)
                return -ENOMEM;
        if (strlen(path) >= sizeof(address.sun_path))
                return luv_log_error(-ENAMETOOLONG, "%s", path);
        memcpy(address.sun_path, path, strlen(path));
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
                return negative_errno();
        /* An earlier run's. */
        if (unlink(path) < 0 && errno != ENOENT)
                return luv_log_error(negative_errno(), "%s cannot be removed", path);
        if (bind(fd, (struct sockaddr *) &address, sizeof(address)) < 0)
                return luv_log_error(negative_errno(), "%s cannot be made", path);
        if (give_to_group(m, path) < 0)
                return -EACCES;
        if (listen(fd, LISTEN_BACKLOG) < 0)
                return luv_log_error(negative_errno(), "%s", path);
        return TAKE_FD(fd);
}

static int take_socket(const Manager *m, const char *name)
{
        struct sockaddr_un address = {};
        socklen_t size = sizeof(address) - 1;
        int fd;

        fd = luv_fd_store_take(m->store, name);
        if (fd >= 0 && getsockname(fd, (struct sockaddr *) &address, &size) >= 0 &&
            address.sun_family == AF_UNIX && address.sun_path[0] == '/')
                (void) give_to_group(m, address.sun_path);
        return fd;
}

static int take_sockets(Manager *m)
{
        for (size_t i = 0; i < ELEMENTSOF(interfaces); i++) {
                m->listen_fds[i] = take_socket(m, interfaces[i]);
                if (m->listen_fds[i] < 0)
                        m->listen_fds[i] = make_socket(m, interfaces[i]);
                if (m->listen_fds[i] < 0)
                        return m->listen_fds[i];
                m->listen_names[i] = (char *) interfaces[i];
        }
        return 0;
}

static int listen_all(Manager *m)
{
        int r;

        for (size_t i = 0; i < ELEMENTSOF(interfaces); i++) {
                int fd = fcntl(m->listen_fds[i], F_DUPFD_CLOEXEC, 3);

                if (fd < 0)
                        return negative_errno();
                r = luv_server_listen(m->server, interfaces[i], fd);
                if (r < 0) {
                        safe_close(fd);
                        return r;
                }
        }
        return 0;
}

static int make_folder(const char *path)
{
        if (mkdir(path, 0755) < 0 && errno != EEXIST)
                return luv_log_error(negative_errno(), "The folder %s cannot be made", path);
        return 0;
}

static int make_plugins(Manager *m)
{
        const ManagerOptions *o = m->options;

        m->plugin_dir = luv_strf("%s/plugin", o->runtime_dir);
        if (!m->plugin_dir)
                return -ENOMEM;
        return luv_plugin_manager_new(m->event, m->plugin_dir, o->simulate ? o->plugin_host : NULL,
                                      o->plugins, &m->plugins);
}

static int make_update(Manager *m, char *const *argv)
{
        UpdateConfig config = {
                .event = m->event,
                .luo = m->luo,
                .store = m->store,
                .plugins = m->plugins,
                .machines = m->machines,
                .simulated = m->options->simulate,
                .runtime_dir = m->options->runtime_dir,
                .state_dir = m->options->state_dir,
                .resume_deadline_usec = m->options->resume_deadline_usec,
                .argv = argv,
                .kept = m->listen_fds,
                .kept_names = m->listen_names,
                .n_kept = ELEMENTSOF(m->listen_fds),
        };

        return luv_update_new(&config, &update_callbacks, m, &m->update);
}

static int make_server(Manager *m)
{
        ServerConfig config = {
                .event = m->event,
                .update = m->update,
                .machines = m->machines,
                .luo = m->luo,
                .plugins = m->plugins,
                .simulated = m->options->simulate,
                .state_dir = m->options->state_dir,
        };

        return luv_server_new(&config, &m->server);
}

int luv_manager_new(const ManagerOptions *options, char *const *argv, Manager **ret)
{
        _cleanup_(luv_manager_freep) Manager *m = NULL;
        int handed_fd, r;

        m = calloc(1, sizeof(Manager));
        if (!m)
                return luv_log_error(-ENOMEM, "luvfiod cannot start");
        m->options = options;
        for (size_t i = 0; i < ELEMENTSOF(m->listen_fds); i++)
                m->listen_fds[i] = -EBADF;

        /* Before anything else opens fds. */
        r = luv_fd_store_new(&m->store);
        if (r < 0)
                return luv_log_error(r, "The file descriptors passed at start cannot be taken");
        handed_fd = options->simulate ? luv_luo_handed_fd() : -ENOENT;
        m->jumped = handed_fd >= 0;

        raise_limits();
        (void) umask(0022);
        r = make_folder(options->runtime_dir);
        if (r < 0)
                return r;
        r = sd_event_default(&m->event);
        if (r >= 0)
                r = sd_event_set_watchdog(m->event, true);
        if (r >= 0)
                r = add_signals(m);
        if (r < 0)
                return luv_log_error(r, "The event loop cannot be made");
        r = luv_luo_new(m->event, options->simulate ? LUO_BACKEND_SIMULATED : LUO_BACKEND_DEVICE, handed_fd,
                        options->simulate_fail, &m->luo);
        if (r < 0)
                return luv_log_error(r, "The live update orchestrator cannot be used");
        r = make_plugins(m);
        if (r < 0)
                return luv_log_error(r, "Plugins cannot be used");
        m->notes_dir = luv_strf("%s/machines", options->runtime_dir);
        if (!m->notes_dir)
                return luv_log_error(-ENOMEM, "luvfiod cannot start");
        r = luv_machine_registry_new(m->event, m->notes_dir, &options->quota, &machine_callbacks, m,
                                     &m->machines);
        if (r < 0)
                return luv_log_error(r, "luvfiod cannot start");
        r = take_sockets(m);
        if (r < 0)
                return luv_log_error(r, "The sockets cannot be made");
        r = make_update(m, argv);
        if (r >= 0)
                r = make_server(m);
        if (r < 0)
                return luv_log_error(r, "luvfiod cannot start");
        *ret = TAKE_PTR(m);
        return 0;
}

Manager *luv_manager_free(Manager *m)
{
        if (!m)
                return NULL;
        m->server = luv_server_free(m->server);
        m->update = luv_update_free(m->update);
        m->machines = luv_machine_registry_free(m->machines);
        luv_plugin_manager_unref(m->plugins);
        luv_luo_unref(m->luo);
        luv_fd_store_free(m->store);
        for (size_t i = 0; i < ELEMENTSOF(m->listen_fds); i++)
                safe_close(m->listen_fds[i]);
        sd_event_unref(m->event);
        free(m->plugin_dir);
        free(m->notes_dir);
        free(m);
        return NULL;
}

int luv_manager_run(Manager *m)
{
        int r;

        /* Sessions first, then those who want something from them. */
        r = luv_update_start(m->update, m->jumped);
        if (r < 0)
                return r;
        r = listen_all(m);
        if (r < 0)
                return luv_log_error(r, "Nobody can be listened to");
        (void) sd_notify(0, "READY=1");
        notify_state(m);
        r = sd_event_loop(m->event);
        if (r < 0)
                return luv_log_error(r, "The event loop failed");
        return 0;
}
