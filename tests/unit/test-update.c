/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <check.h>
#include <sys/mman.h>
#include <sys/pidfd.h>

#include "update/update-private.h"
#include "util/string-util.h"
#include "util/time-util.h"

/* The machinery of an update on the simulated backend, with VMMs that are functions. */

static const char *const legal[] = {
        "idle checking",      "idle restoring",     "checking staging",    "checking idle",
        "staging staged",     "staging idle",       "staged staging",      "staged draining",
        "staged idle",        "draining quiescing", "draining idle",       "quiescing handing_over",
        "quiescing idle",     "handing_over idle",  "restoring rebinding", "restoring idle",
        "rebinding resuming", "resuming finishing", "finishing idle",
};

static bool is_legal(UpdateState from, UpdateState to)
{
        for (size_t i = 0; i < ELEMENTSOF(legal); i++) {
                char *pair = luv_strf("%s %s", luv_update_state_to_string(from),
                                      luv_update_state_to_string(to));
                bool found = streq(pair, legal[i]);

                free(pair);
                if (found)
                        return true;
        }
        return false;
}

typedef struct Bench {
        sd_event *event;
        Luo *luo;
        FdStore *store;
        MachineRegistry *machines;
        Update *update;
        char folder[32];
        unsigned events[_MACHINE_EVENT_MAX];
        bool silent[_MACHINE_EVENT_MAX]; /* the VMM named "mute" does not answer these */
        unsigned n_ended;
        UpdateEnd end;
        UpdateState failed_in;
        char *machine;
} Bench;

static void on_ended(const UpdateOutcome *o, void *userdata)
{
        Bench *b = userdata;

        b->n_ended++;
        b->end = o->end;
        b->failed_in = o->state;
        ck_assert_int_ge(luv_free_and_strdup(&b->machine, o->machine), 0);
}

typedef struct Answer {
        Bench *bench;
        char *machine;
        MachineEvent event;
} Answer;

static int on_answer(sd_event_source *s, void *userdata)
{
        Answer *a = userdata;
        Machine *m = luv_machine_registry_find(a->bench->machines, a->machine);
        Update *u = a->bench->update;

        if (m)
                switch (a->event) {
                case MACHINE_EVENT_PREPARE:
                        (void) luv_update_prepared(u, m);
                        break;
                case MACHINE_EVENT_QUIESCE:
                        (void) luv_update_quiesced(u, m, luv_now_usec());
                        break;
                case MACHINE_EVENT_COMMIT:
                        (void) luv_update_committed(u, m);
                        break;
                case MACHINE_EVENT_ABORT:
                        (void) luv_update_resumed(u, m, 0);
                        break;
                default:
                        break;
                }
        free(a->machine);
        free(a);
        return 0;
}

static void on_event(Machine *m, MachineEvent event, const char *update_id, uint64_t remaining,
                     const char *reason, void *userdata)
{
        Bench *b = userdata;
        Answer *a;

        b->events[event]++;
        if (b->silent[event] && streq(m->name, "mute"))
                return;
        a = calloc(1, sizeof(Answer));
        ck_assert_ptr_nonnull(a);
        a->bench = b;
        a->machine = strdup(m->name);
        a->event = event;
        ck_assert_int_ge(sd_event_add_defer(b->event, NULL, on_answer, a), 0);
}

static void on_state(Machine *m, MachineState old, void *userdata)
{
        Bench *b = userdata;

        if (b->update)
                luv_update_machine_state_changed(b->update, m, old);
}

static void on_forgotten(Machine *m, void *userdata)
{
        Bench *b = userdata;

        if (b->update)
                luv_update_machine_forgotten(b->update, m);
}

static const UpdateCallbacks update_callbacks = { .ended = on_ended, .event = on_event };
static const MachineCallbacks machine_callbacks = { .state_changed = on_state, .forgotten = on_forgotten };

static Bench *bench_new(void)
{
        Bench *b = calloc(1, sizeof(Bench));
        UpdateConfig config;

        ck_assert_ptr_nonnull(b);
        strcpy(b->folder, "/tmp/luvfiod-test-XXXXXX");
        ck_assert_ptr_nonnull(mkdtemp(b->folder));
        ck_assert_int_eq(sd_event_new(&b->event), 0);
        ck_assert_int_eq(luv_fd_store_new(&b->store), 0);
        ck_assert_int_eq(luv_luo_new(b->event, LUO_BACKEND_SIMULATED, -EBADF, NULL, &b->luo), 0);
        ck_assert_int_eq(luv_machine_registry_new(b->event, NULL, NULL, &machine_callbacks, b, &b->machines),
                         0);
        config = (UpdateConfig) {
                .event = b->event,
                .luo = b->luo,
                .store = b->store,
                .machines = b->machines,
                .simulated = true,
                .runtime_dir = b->folder,
                .state_dir = b->folder,
                .resume_deadline_usec = USEC_PER_SEC,
        };
        ck_assert_int_eq(luv_update_new(&config, &update_callbacks, b, &b->update), 0);
        return b;
}

static void bench_free(Bench *b)
{
        char *command = luv_strf("rm -r %s", b->folder);

        b->update = luv_update_free(b->update);
        luv_machine_registry_free(b->machines);
        luv_luo_unref(b->luo);
        luv_fd_store_free(b->store);
        /* Answers that are under way own themselves. */
        while (sd_event_run(b->event, 0) > 0)
                ;
        sd_event_unref(b->event);
        ck_assert_int_eq(system(command), 0);
        free(command);
        free(b->machine);
        free(b);
}

static Machine *add_machine(Bench *b, const char *name)
{
        MachineOwner o = { .uid = getuid(), .pid = getpid(), .pidfd = pidfd_open(getpid(), 0) };
        int fd = memfd_create(name, MFD_CLOEXEC);
        MachineFd *f, *other;
        FdIdentity identity;
        const char *what;
        uint64_t limit;
        Machine *m;

        ck_assert_int_eq(luv_machine_new(b->machines, name, &o, MACHINE_RUNNING, &m), 0);
        ck_assert_int_eq(ftruncate(fd, 8192), 0);
        ck_assert_int_eq(luv_fd_identify(fd, true, &identity, NULL), 0);
        ck_assert_int_eq(luv_machine_hold(m, "ram", FD_KIND_MEMFD, FD_OUTCOME_PRESERVED, &identity, &fd, &f,
                                          &other, &what, &limit),
                         0);
        m->attached = true;
        return m;
}

/* From the first gate on: what the checks look at has tests of its own. */
static void begin(Bench *b, bool jump, char *const *sacrifice)
{
        Update *u = b->update;
        char id[LUVFIO_ID_SIZE];

        luv_random_id(id);
        luv_update_reset(u);
        ck_assert_int_ge(luv_free_and_strdup(&u->id, id), 0);
        ck_assert_int_ge(luv_free_and_strdup(&u->from_kernel, "a"), 0);
        ck_assert_int_ge(luv_free_and_strdup(&u->to_kernel, "b"), 0);
        ck_assert_int_ge(luv_strv_copy(sacrifice, &u->sacrifice), 0);
        u->jump = jump;
        u->quiesce_usec = 200 * USEC_PER_MSEC;
        u->timeline.started_usec = luv_now_usec();
        ck_assert_int_eq(luv_update_transition(u, UPDATE_CHECKING), 0);
        luv_update_stage(u);
}

static void run_until_ended(Bench *b)
{
        uint64_t deadline = luv_now_usec() + 20 * USEC_PER_SEC;

        while (b->n_ended == 0) {
                ck_assert_int_ge(sd_event_run(b->event, 100 * USEC_PER_MSEC), 0);
                ck_assert_uint_lt(luv_now_usec(), deadline);
        }
}

static void run_until(Bench *b, UpdateState state, MachineEvent event)
{
        uint64_t deadline = luv_now_usec() + 20 * USEC_PER_SEC;

        while (luv_update_state(b->update) != state || b->events[event] == 0) {
                ck_assert_int_ge(sd_event_run(b->event, 100 * USEC_PER_MSEC), 0);
                ck_assert_uint_lt(luv_now_usec(), deadline);
        }
}

/* Nothing is left of an update. */
static void is_clean(Bench *b)
{
        ck_assert_int_eq(luv_update_state(b->update), UPDATE_IDLE);
        ck_assert(!b->update->aborting);
        ck_assert_uint_eq(b->update->n_undo, 0);
        ck_assert_ptr_null(luv_update_id(b->update));
        ck_assert_ptr_null(b->update->host_session);
        for (size_t i = 0; i < luv_machine_registry_size(b->machines); i++) {
                Machine *m = luv_machine_registry_at(b->machines, i);

                ck_assert_int_eq(m->state, MACHINE_RUNNING);
                ck_assert_ptr_null(m->session);
                ck_assert_ptr_null(m->session_name);
                ck_assert_uint_eq(m->n_fds, 1);
                ck_assert(!m->fds[0]->preserved);
        }
}

START_TEST(transitions)
{
        for (UpdateState from = 0; from < _UPDATE_STATE_MAX; from++)
                for (UpdateState to = 0; to < _UPDATE_STATE_MAX; to++)
                        ck_assert_msg(luv_update_transition_is_legal(from, to) == is_legal(from, to),
                                      "%s to %s", luv_update_state_to_string(from),
                                      luv_update_state_to_string(to));
        ck_assert(!luv_update_transition_is_legal(_UPDATE_STATE_INVALID, UPDATE_IDLE));
        ck_assert(!luv_update_transition_is_legal(UPDATE_IDLE, _UPDATE_STATE_MAX));
}
END_TEST

START_TEST(illegal_transitions_change_nothing)
{
        Bench *b = bench_new();

        for (UpdateState from = 0; from < _UPDATE_STATE_MAX; from++)
                for (UpdateState to = 0; to < _UPDATE_STATE_MAX; to++) {
                        b->update->state = from;
                        if (is_legal(from, to)) {
                                ck_assert_int_eq(luv_update_transition(b->update, to), 0);
                                ck_assert_int_eq(luv_update_state(b->update), to);
                        } else {
                                ck_assert_int_eq(luv_update_transition(b->update, to), -EPROTO);
                                ck_assert_int_eq(luv_update_state(b->update), from);
                        }
                }
        b->update->state = UPDATE_IDLE;
        bench_free(b);
}
END_TEST

START_TEST(names)
{
        for (UpdateState s = 0; s < _UPDATE_STATE_MAX; s++)
                ck_assert_int_eq(luv_update_state_from_string(luv_update_state_to_string(s)), s);
        ck_assert_int_lt(luv_update_state_from_string("nonsense"), 0);
        ck_assert_ptr_null(luv_update_state_to_string(_UPDATE_STATE_INVALID));
}
END_TEST

START_TEST(nothing_to_abort)
{
        static const UpdateState states[] = { UPDATE_IDLE, UPDATE_RESTORING, UPDATE_REBINDING,
                                              UPDATE_RESUMING, UPDATE_FINISHING };
        Bench *b = bench_new();

        for (size_t i = 0; i < ELEMENTSOF(states); i++) {
                b->update->state = states[i];
                ck_assert_int_eq(luv_update_abort(b->update, "no"), -EPROTO);
        }
        b->update->state = UPDATE_IDLE;
        bench_free(b);
}
END_TEST

/* Where nobody has been asked anything yet. */
START_TEST(abort_checking)
{
        Bench *b = bench_new();

        add_machine(b, "vm");
        ck_assert_int_eq(luv_update_transition(b->update, UPDATE_CHECKING), 0);
        ck_assert_int_ge(luv_free_and_strdup(&b->update->id, "0123456789abcdef0123456789abcdef"), 0);
        ck_assert_int_eq(luv_update_abort(b->update, "no"), 0);
        run_until_ended(b);
        ck_assert_int_eq(b->end, UPDATE_END_ABORTED);
        ck_assert_int_eq(b->failed_in, UPDATE_CHECKING);
        ck_assert_uint_eq(b->events[MACHINE_EVENT_ABORT], 0);
        is_clean(b);
        bench_free(b);
}
END_TEST

static const struct {
        UpdateState state;
        MachineEvent event; /* that the mute one does not answer */
        bool jump;
} stops[] = {
        { UPDATE_STAGING, MACHINE_EVENT_PREPARE, true },
        { UPDATE_STAGED, MACHINE_EVENT_PREPARE, false },
        { UPDATE_QUIESCING, MACHINE_EVENT_QUIESCE, true },
        { UPDATE_HANDING_OVER, MACHINE_EVENT_COMMIT, true },
};

START_TEST(abort_from_every_state)
{
        Bench *b = bench_new();

        add_machine(b, "mute");
        add_machine(b, "vm");
        b->silent[stops[_i].event] = stops[_i].jump;
        begin(b, stops[_i].jump, NULL);
        run_until(b, stops[_i].state, stops[_i].event);
        b->n_ended = 0;
        ck_assert_int_eq(luv_update_abort(b->update, "an operator"), 0);
        /* A second one changes nothing. */
        ck_assert_int_eq(luv_update_abort(b->update, "another"), 0);
        run_until_ended(b);
        ck_assert_int_eq(b->end, UPDATE_END_ABORTED);
        ck_assert_int_eq(b->failed_in, stops[_i].state);
        ck_assert_uint_eq(b->events[MACHINE_EVENT_ABORT], 2);
        is_clean(b);
        ck_assert_str_eq(luv_update_last_report(b->update)->reason, "an operator");
        bench_free(b);
}
END_TEST

START_TEST(abort_draining)
{
        Bench *b = bench_new();

        add_machine(b, "vm");
        begin(b, false, NULL);
        run_until(b, UPDATE_STAGED, MACHINE_EVENT_PREPARE);
        b->n_ended = 0;
        /* Simulated, there is nothing to drain; the state is passed through. */
        ck_assert_int_eq(luv_update_transition(b->update, UPDATE_DRAINING), 0);
        ck_assert_int_eq(luv_update_abort(b->update, "no"), 0);
        run_until_ended(b);
        ck_assert_int_eq(b->failed_in, UPDATE_DRAINING);
        is_clean(b);
        bench_free(b);
}
END_TEST

START_TEST(deadline_names_the_machine)
{
        Bench *b = bench_new();

        add_machine(b, "mute");
        add_machine(b, "vm");
        b->silent[MACHINE_EVENT_QUIESCE] = true;
        begin(b, true, NULL);
        run_until_ended(b);
        ck_assert_int_eq(b->end, UPDATE_END_ABORTED);
        ck_assert_int_eq(b->failed_in, UPDATE_QUIESCING);
        ck_assert_str_eq(b->machine, "mute");
        is_clean(b);
        bench_free(b);
}
END_TEST

/* A machine that may be lost does not hold the others up. */
START_TEST(sacrifice)
{
        char *list[] = { (char *) "mute", NULL };
        Bench *b = bench_new();
        Machine *mute = add_machine(b, "mute");

        add_machine(b, "vm");
        b->silent[MACHINE_EVENT_QUIESCE] = b->silent[MACHINE_EVENT_COMMIT] = true;
        begin(b, true, list);
        run_until(b, UPDATE_HANDING_OVER, MACHINE_EVENT_ABORT);
        ck_assert_ptr_null(mute->session);
        ck_assert_int_eq(luv_update_abort(b->update, "enough was seen"), 0);
        run_until_ended(b);
        is_clean(b);
        bench_free(b);
}
END_TEST

/* One that does not even say that it runs again does not hold the end up for ever. */
START_TEST(mute_on_abort)
{
        Bench *b = bench_new();
        Machine *mute = add_machine(b, "mute");

        b->silent[MACHINE_EVENT_QUIESCE] = b->silent[MACHINE_EVENT_ABORT] = true;
        begin(b, true, NULL);
        run_until_ended(b);
        ck_assert_int_eq(luv_update_state(b->update), UPDATE_IDLE);
        ck_assert_int_eq(mute->state, MACHINE_ABORTING);
        ck_assert_ptr_nonnull(mute->reason);
        /* Late is well. */
        ck_assert_int_eq(luv_update_resumed(b->update, mute, 0), 0);
        is_clean(b);
        bench_free(b);
}
END_TEST

/* What the VMM says at the wrong time changes nothing. */
START_TEST(wrong_answers)
{
        Bench *b = bench_new();
        Machine *m = add_machine(b, "vm");

        ck_assert_int_eq(luv_update_prepared(b->update, m), -EPROTO);
        ck_assert_int_eq(luv_update_quiesced(b->update, m, 0), -EPROTO);
        ck_assert_int_eq(luv_update_committed(b->update, m), -EPROTO);
        ck_assert_int_eq(luv_update_resumed(b->update, m, 0), -EPROTO);
        begin(b, false, NULL);
        run_until(b, UPDATE_STAGED, MACHINE_EVENT_PREPARE);
        ck_assert_int_eq(m->state, MACHINE_PREPARED);
        ck_assert_int_eq(luv_update_prepared(b->update, m), -EPROTO);
        ck_assert_int_eq(luv_update_quiesced(b->update, m, 0), -EPROTO);
        ck_assert_int_eq(luv_update_committed(b->update, m), -EPROTO);
        ck_assert_int_eq(luv_update_resumed(b->update, m, 0), -EPROTO);
        b->n_ended = 0;
        ck_assert_int_eq(luv_update_abort(b->update, "no"), 0);
        run_until_ended(b);
        is_clean(b);
        bench_free(b);
}
END_TEST

/* A machine that comes while an update is staged is staged with it. */
START_TEST(newcomer)
{
        Bench *b = bench_new();
        Machine *late;

        add_machine(b, "vm");
        begin(b, false, NULL);
        run_until(b, UPDATE_STAGED, MACHINE_EVENT_PREPARE);
        late = add_machine(b, "late");
        ck_assert(luv_update_takes_machines(b->update));
        luv_update_attached(b->update, late);
        while (late->state != MACHINE_PREPARED)
                ck_assert_int_ge(sd_event_run(b->event, USEC_PER_SEC), 0);
        ck_assert_int_eq(luv_update_state(b->update), UPDATE_STAGED);
        ck_assert_ptr_nonnull(late->session);
        b->n_ended = 0;
        ck_assert_int_eq(luv_update_abort(b->update, "no"), 0);
        run_until_ended(b);
        ck_assert_uint_eq(b->events[MACHINE_EVENT_ABORT], 2);
        is_clean(b);
        bench_free(b);
}
END_TEST

/* Names of sessions are never used twice in a boot. */
START_TEST(session_names)
{
        Bench *b = bench_new();
        char *last = NULL;
        Machine *m = add_machine(b, "vm");

        for (int i = 0; i < 3; i++) {
                begin(b, false, NULL);
                b->events[MACHINE_EVENT_PREPARE] = 0;
                run_until(b, UPDATE_STAGED, MACHINE_EVENT_PREPARE);
                ck_assert(!streq_ptr(last, m->session_name));
                ck_assert_int_ge(luv_free_and_strdup(&last, m->session_name), 0);
                b->n_ended = 0;
                ck_assert_int_eq(luv_update_abort(b->update, "no"), 0);
                run_until_ended(b);
                is_clean(b);
        }
        free(last);
        bench_free(b);
}
END_TEST

START_TEST(journal)
{
        char *frozen[] = { (char *) "/a.service", NULL }, *none[] = { NULL };
        JournalMachine machines[] = { { (char *) "vm", (char *) "quiesced", (char *) "luvfio-vm-1" },
                                      { (char *) "vm2", (char *) "running", NULL } };
        UpdateJournal j = {
                .boot_id = (char *) "b",
                .update_id = (char *) "u",
                .state = (char *) "handing_over",
                .frozen = frozen,
                .units = none,
                .drained = true,
                .image = true,
                .anchor = { .boottime_usec = 5, .realtime_usec = 6, .tsc = 7 },
                .machines = machines,
                .n_machines = 2,
        };
        char folder[] = "/tmp/luvfiod-test-XXXXXX", *reason = NULL, *path;
        UpdateJournal *read = NULL;
        FILE *f;

        ck_assert_ptr_nonnull(mkdtemp(folder));
        ck_assert_int_eq(luv_update_journal_read(folder, &read, &reason), -ENOENT);
        ck_assert_int_eq(luv_update_journal_write(folder, &j), 0);
        ck_assert_int_eq(luv_update_journal_read(folder, &read, &reason), 0);
        ck_assert_str_eq(read->state, "handing_over");
        ck_assert_str_eq(read->frozen[0], "/a.service");
        ck_assert_uint_eq(luv_strv_length(read->units), 0);
        ck_assert(read->drained && read->image && !read->incoming);
        ck_assert_uint_eq(read->anchor.tsc, 7);
        ck_assert_uint_eq(read->n_machines, 2);
        ck_assert_str_eq(read->machines[0].session, "luvfio-vm-1");
        ck_assert_ptr_null(read->machines[1].session);
        luv_update_journal_free(read);

        path = luv_strf("%s/" LUVFIO_JOURNAL_FILE, folder);
        f = fopen(path, "w");
        ck_assert_ptr_nonnull(f);
        fputs("{\"bootId\":7}", f);
        fclose(f);
        ck_assert_int_eq(luv_update_journal_read(folder, &read, &reason), -EBADMSG);
        ck_assert_ptr_nonnull(reason);
        free(reason);
        luv_update_journal_remove(folder);
        ck_assert_int_lt(access(path, F_OK), 0);
        free(path);
        ck_assert_int_eq(rmdir(folder), 0);
}
END_TEST

int main(void)
{
        Suite *s = suite_create("update");
        TCase *c = tcase_create("update");
        SRunner *r;

        tcase_set_timeout(c, 60);
        tcase_add_test(c, transitions);
        tcase_add_test(c, illegal_transitions_change_nothing);
        tcase_add_test(c, names);
        tcase_add_test(c, nothing_to_abort);
        tcase_add_test(c, abort_checking);
        tcase_add_loop_test(c, abort_from_every_state, 0, ELEMENTSOF(stops));
        tcase_add_test(c, abort_draining);
        tcase_add_test(c, deadline_names_the_machine);
        tcase_add_test(c, sacrifice);
        tcase_add_test(c, mute_on_abort);
        tcase_add_test(c, wrong_answers);
        tcase_add_test(c, newcomer);
        tcase_add_test(c, session_names);
        tcase_add_test(c, journal);
        suite_add_tcase(s, c);
        r = srunner_create(s);
        srunner_set_tap(r, "-");
        srunner_run_all(r, CK_SILENT);
        srunner_free(r);
        return 0;
}
