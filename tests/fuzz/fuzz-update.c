/* SPDX-License-Identifier: LGPL-2.1-or-later */

/*
 * Sequences of what can happen to an update before the jump: what VMMs and operators do in any order, at any
 * moment. Each byte is one thing, its upper bits say for which machine. The simulated kernel refuses every
 * jump, so that all ends where it began: idle, with every machine running.
 */

#include <sys/mman.h>
#include <sys/pidfd.h>

#include "fuzz.h"
#include "update/update.h"
#include "util/crc32c.h"

#define N_MACHINES 4u
#define INPUT_MAX 200u
#define COMMAND_LINE "kho=on liveupdate=on"

typedef struct World {
        sd_event *event;
        Luo *luo;
        FdStore *store;
        PluginManager *plugins;
        MachineRegistry *registry;
        Update *update;
        unsigned ended, begun;
        bool told[N_MACHINES]; /* was asked something, and has not heard of an end yet */
} World;

static const char *const names[N_MACHINES] = { "vm0", "vm1", "vm2", "vm3" };

static void put(uint8_t *p, uint64_t v, size_t n)
{
        for (size_t i = 0; i < n; i++)
                p[i] = (uint8_t) (v >> (8 * i));
}

/* The least that passes for a kernel which can take over from the simulated one. */
static int kernel(void)
{
        static const char abi[] = "simulated luvfio-v1 rw\n", release[] = "7.3.4-fuzz (a@b)";
        uint8_t image[5 * 512 + 256] = {};

        image[0x1f1] = 4;
        put(image + 0x1f4, 256 / 16, 4);
        put(image + 0x1fe, 0xaa55, 2);
        put(image + 0x202, 0x53726448, 4); /* "HdrS" */
        put(image + 0x206, 0x20f, 2);
        put(image + 0x20e, 0x200, 2);
        put(image + 0x236, 1, 2);
        memcpy(image + 0x400, release, sizeof(release));
        memcpy(image + 2560, "LUVFIO-LUO-ABI\0", 16);
        put(image + 2576, sizeof(abi) - 1, 4);
        put(image + 2580, luv_crc32c(abi, sizeof(abi) - 1), 4);
        memcpy(image + 2584, abi, sizeof(abi));
        return fuzz_memfd(image, sizeof(image));
}

static unsigned number(const Machine *m)
{
        return (unsigned) (m->name[2] - '0');
}

static void on_state_changed(Machine *m, MachineState old, void *userdata)
{
        World *w = userdata;

        FUZZ_REQUIRE((int) m->state >= 0 && m->state < _MACHINE_STATE_MAX);
        if (w->update)
                luv_update_machine_state_changed(w->update, m, old);
}

static void on_exited(Machine *m, void *userdata)
{
        World *w = userdata;

        luv_update_machine_exited(w->update, m);
}

static void on_forgotten(Machine *m, void *userdata)
{
        World *w = userdata;

        w->told[number(m)] = false;
        if (w->update)
                luv_update_machine_forgotten(w->update, m);
}

static void on_progress(const UpdateProgress *p, void *userdata)
{
        FUZZ_REQUIRE(luv_update_state_to_string(p->state));
        FUZZ_REQUIRE(p->done <= p->total || p->total == 0);
}

static void on_ended(const UpdateOutcome *o, void *userdata)
{
        World *w = userdata;

        w->ended++;
        FUZZ_REQUIRE(o->end != UPDATE_END_DONE);
        FUZZ_REQUIRE(o->end != UPDATE_END_ABORTED || (o->reason && *o->reason));
        FUZZ_REQUIRE(o->end != UPDATE_END_BLOCKED || (o->findings && o->findings->n > 0));
}

static void on_event(Machine *m, MachineEvent event, const char *update_id, uint64_t remaining,
                     const char *reason, void *userdata)
{
        World *w = userdata;

        switch (event) {
        case MACHINE_EVENT_PREPARE:
        case MACHINE_EVENT_QUIESCE:
        case MACHINE_EVENT_COMMIT:
                FUZZ_REQUIRE(update_id);
                w->told[number(m)] = true;
                break;
        case MACHINE_EVENT_ABORT:
                FUZZ_REQUIRE(m->state == MACHINE_ABORTING);
                w->told[number(m)] = false;
                break;
        case MACHINE_EVENT_RESUME:
        case MACHINE_EVENT_FINISHED:
                FUZZ_REQUIRE(!"before a jump nothing resumes");
                break;
        default:
                break;
        }
}

static void loop(World *w, unsigned rounds, uint64_t wait)
{
        for (unsigned i = 0; i < rounds; i++)
                if (sd_event_run(w->event, wait) <= 0)
                        return;
}

static void hold(World *w, Machine *m, uint8_t which)
{
        bool state = which & 1;
        _cleanup_close_ int fd = fuzz_memfd("x", 1);
        _cleanup_free_ char *reason = NULL;
        MachineFd *f, *other;
        const char *what;
        FdIdentity identity;
        uint64_t limit;
        int r;

        /* As the socket's side has it. */
        if (state ? m->state != MACHINE_QUIESCING
                  : m->state != MACHINE_RUNNING && m->state != MACHINE_PREPARING &&
                                            m->state != MACHINE_PREPARED)
                return;
        FUZZ_REQUIRE(ftruncate(fd, 4096) >= 0);
        FUZZ_REQUIRE(luv_fd_identify(fd, true, &identity, &reason) >= 0);
        r = luv_machine_hold(m,
                             state       ? "state"
                             : which & 2 ? "ram"
                                         : "more",
                             state ? FD_KIND_STATE : FD_KIND_MEMFD, FD_OUTCOME_PRESERVED, &identity, &fd, &f,
                             &other, &what, &limit);
        if (r >= 0)
                luv_update_held(w->update, m, f);
        else
                FUZZ_REQUIRE(r == -EBUSY); /* in the session by now */
}

static void begin(World *w, uint8_t how)
{
        char *sacrifice[] = { (char *) "vm3", NULL };
        UpdateRequest request = {
                .jump = how & 1,
                .dry_run = (how & 3) == 3,
                .deadline_usec = USEC_PER_SEC,
                .kernel_fd = how & 4 ? -EBADF : kernel(),
                .initrd_fd = -EBADF,
                .cmdline = how & 4 ? NULL : COMMAND_LINE,
                .sacrifice = how & 8 ? sacrifice : NULL,
        };

        if (luv_update_begin(w->update, &request) >= 0)
                w->begun++;
        safe_close(request.kernel_fd);
}

static void step(World *w, uint8_t byte)
{
        unsigned i = byte >> 6, more = (byte >> 4) & 3;
        Machine *m = luv_machine_registry_find(w->registry, names[i]);

        switch (byte & 15) {
        case 0:
                if (!m && luv_update_takes_machines(w->update)) {
                        MachineOwner owner = {
                                .uid = 1000 + i,
                                .pid = getpid(),
                                .pidfd = pidfd_open(getpid(), 0),
                        };

                        FUZZ_REQUIRE(luv_machine_new(w->registry, names[i], &owner, MACHINE_RUNNING, &m) >=
                                     0);
                }
                break;
        case 1:
                if (m)
                        hold(w, m, (uint8_t) more);
                break;
        case 2:
                if (m) {
                        m->attached = true;
                        luv_update_attached(w->update, m);
                }
                break;
        case 3:
                if (m && m->attached) {
                        m->attached = false;
                        luv_update_detached(w->update, m);
                }
                break;
        case 4:
                if (m)
                        (void) luv_update_prepared(w->update, m);
                break;
        case 5:
                if (m)
                        (void) luv_update_quiesced(w->update, m, 1);
                break;
        case 6:
                if (m)
                        (void) luv_update_committed(w->update, m);
                break;
        case 7:
                if (m)
                        (void) luv_update_resumed(w->update, m, 1);
                break;
        case 8:
        case 9:
                begin(w, (uint8_t) (byte >> 4));
                break;
        case 10:
                (void) luv_update_abort(w->update, "the fuzzer says so");
                break;
        case 11:
                if (m) {
                        m->exited = true;
                        luv_update_machine_exited(w->update, m);
                }
                break;
        case 12:
                if (m && m->state == MACHINE_RUNNING && !m->session)
                        luv_machine_forget(m);
                break;
        case 13:
                /* Everybody answers what he was asked. */
                for (size_t k = 0; k < luv_machine_registry_size(w->registry); k++) {
                        Machine *x = luv_machine_registry_at(w->registry, k);

                        if (x->state == MACHINE_PREPARING)
                                (void) luv_update_prepared(w->update, x);
                        else if (x->state == MACHINE_QUIESCING)
                                (void) luv_update_quiesced(w->update, x, 1);
                        else if (x->state == MACHINE_QUIESCED)
                                (void) luv_update_committed(w->update, x);
                        else if (x->state == MACHINE_ABORTING)
                                (void) luv_update_resumed(w->update, x, 1);
                }
                break;
        case 14:
                loop(w, 1, 0);
                break;
        default:
                loop(w, 50, 0);
                break;
        }
        FUZZ_REQUIRE(luv_update_state_to_string(luv_update_state(w->update)));
        FUZZ_REQUIRE(luv_update_state(w->update) < UPDATE_RESTORING);
}

/* Gives up whatever is under way: all machines must run then, and nobody waits to hear of the end. */
static void settle(World *w)
{
        (void) luv_update_abort(w->update, "the end of the input");
        for (unsigned i = 0; i < 400 && (luv_update_state(w->update) != UPDATE_IDLE || i < 4); i++) {
                for (size_t k = 0; k < luv_machine_registry_size(w->registry); k++) {
                        Machine *x = luv_machine_registry_at(w->registry, k);

                        if (x->state == MACHINE_ABORTING)
                                (void) luv_update_resumed(w->update, x, 1);
                }
                loop(w, 20, i < 8 ? 0 : 5 * USEC_PER_MSEC);
                if (luv_update_state(w->update) != UPDATE_IDLE)
                        (void) luv_update_abort(w->update, "the end of the input");
        }
        FUZZ_REQUIRE(luv_update_state(w->update) == UPDATE_IDLE);
        FUZZ_REQUIRE(!luv_update_id(w->update));
        for (size_t k = 0; k < luv_machine_registry_size(w->registry); k++) {
                Machine *x = luv_machine_registry_at(w->registry, k);

                if (x->state != MACHINE_RUNNING || x->session || w->told[number(x)])
                        fprintf(stderr, "%s is %s, session %s, %s\n", x->name,
                                luv_machine_state_to_string(x->state), x->session ? x->session_name : "none",
                                w->told[number(x)] ? "waits" : "knows");
                FUZZ_REQUIRE(x->state == MACHINE_RUNNING);
                FUZZ_REQUIRE(!x->session);
                FUZZ_REQUIRE(!w->told[number(x)]);
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        static const MachineCallbacks machine_callbacks = {
                .state_changed = on_state_changed,
                .exited = on_exited,
                .forgotten = on_forgotten,
        };
        static const UpdateCallbacks update_callbacks = {
                .progress = on_progress,
                .ended = on_ended,
                .event = on_event,
        };
        static char refuse[INPUT_MAX * 16];
        static char folder[] = "/tmp/fuzz-update-XXXXXX";
        static bool prepared;
        static char *no_argv[] = { (char *) "/proc/nonexistent", NULL };
        World w = {};
        UpdateConfig config;

        if (!prepared) {
                for (unsigned i = 1; i <= INPUT_MAX; i++)
                        (void) sprintf(refuse + strlen(refuse), "%sfreeze:%u", i > 1 ? "," : "", i);
                FUZZ_REQUIRE(mkdtemp(folder));
                fuzz_quiet();
                prepared = true;
        }
        FUZZ_REQUIRE(sd_event_new(&w.event) >= 0);
        FUZZ_REQUIRE(luv_luo_new(w.event, LUO_BACKEND_SIMULATED, -1, refuse, &w.luo) >= 0);
        FUZZ_REQUIRE(luv_fd_store_new(&w.store) >= 0);
        FUZZ_REQUIRE(luv_plugin_manager_new(w.event, "/proc/nonexistent", NULL, NULL, &w.plugins) >= 0);
        FUZZ_REQUIRE(luv_machine_registry_new(w.event, NULL, NULL, &machine_callbacks, &w, &w.registry) >=
                     0);
        config = (UpdateConfig) {
                .event = w.event,
                .luo = w.luo,
                .store = w.store,
                .plugins = w.plugins,
                .machines = w.registry,
                .simulated = true,
                .runtime_dir = folder,
                /* No history: it would be written for every input. */
                .state_dir = "/proc/nonexistent",
                .argv = no_argv,
        };
        FUZZ_REQUIRE(luv_update_new(&config, &update_callbacks, &w, &w.update) >= 0);
        FUZZ_REQUIRE(luv_update_start(w.update, false) >= 0);
        for (unsigned i = 0; i < 100 && !luv_update_knows_machines(w.update); i++)
                loop(&w, 1, 10 * USEC_PER_MSEC);
        FUZZ_REQUIRE(luv_update_knows_machines(w.update));
        loop(&w, 20, 0);

        for (size_t i = 0; i < MIN(size, (size_t) INPUT_MAX); i++)
                step(&w, data[i]);
        settle(&w);

        while (luv_machine_registry_size(w.registry) > 0)
                luv_machine_forget(luv_machine_registry_at(w.registry, 0));
        w.update = luv_update_free(w.update);
        luv_machine_registry_free(w.registry);
        luv_plugin_manager_unref(w.plugins);
        luv_luo_unref(w.luo);
        luv_fd_store_free(w.store);
        sd_event_unref(w.event);
        return 0;
}
