/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* libluvfio against a luvfiod that is none: a child that serves the interface from a script. */

#include <check.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <systemd/sd-event.h>
#include <systemd/sd-varlink.h>

#include "luvfio/luvfio.h"
#include "util/macro.h"
#include "varlink/idl.h"

#define SECRET "00112233445566778899aabbccddeeff"
#define I "org.luvfio.Machine."

/* -- the server, in a child -- */

/*
 * Commands, each answered by one byte when done:
 *   E<event> <state>   send an event             S<state>   state that Register and Watch tell
 *   D                  drop all connections      K          on Committed: drop all connections instead of an
 * answer N                  on Committed: WrongState  H          on any call but Register: no answer F
 * forget the machine        W          end the Watch without an error
 */
typedef struct Server {
        sd_event *event;
        sd_varlink_server *server;
        sd_varlink *watch;
        sd_varlink *links[16];
        const char *state;
        char state_buffer[64];
        int held_fd;
        char held_name[65], held_kind[16];
        bool drop_at_commit, refuse_commit, hang, known;
        unsigned n_dropped;
} Server;

static void drop_links(Server *s)
{
        /* on_disconnect() gives the references up. */
        for (size_t i = 0; i < ELEMENTSOF(s->links); i++)
                if (s->links[i])
                        (void) sd_varlink_close(s->links[i]);
}

static int on_connect(sd_varlink_server *server, sd_varlink *link, void *userdata)
{
        Server *s = userdata;

        sd_varlink_set_allow_fd_passing_input(link, true);
        sd_varlink_set_allow_fd_passing_output(link, true);
        for (size_t i = 0; i < ELEMENTSOF(s->links); i++)
                if (!s->links[i]) {
                        s->links[i] = sd_varlink_ref(link);
                        return 0;
                }
        return -EMFILE;
}

static void on_disconnect(sd_varlink_server *server, sd_varlink *link, void *userdata)
{
        Server *s = userdata;

        for (size_t i = 0; i < ELEMENTSOF(s->links); i++)
                if (s->links[i] == link)
                        s->links[i] = sd_varlink_unref(s->links[i]);
        if (s->watch == link)
                s->watch = sd_varlink_unref(s->watch);
}

static const char *string_at(sd_json_variant *parameters, const char *key)
{
        sd_json_variant *v = sd_json_variant_by_key(parameters, key);

        return v ? sd_json_variant_string(v) : NULL;
}

static int describe(Server *s, sd_json_variant **ret)
{
        struct stat st = {};

        (void) fstat(s->held_fd, &st);
        return sd_json_buildo(ret, SD_JSON_BUILD_PAIR_STRING("name", s->held_name),
                              SD_JSON_BUILD_PAIR_STRING("kind", s->held_kind),
                              SD_JSON_BUILD_PAIR_UNSIGNED("token", 65537),
                              SD_JSON_BUILD_PAIR_STRING("outcome",
                                                        streq(s->held_kind, "vfio") ? "reset" : "preserved"),
                              SD_JSON_BUILD_PAIR_CONDITION(streq(s->held_kind, "memfd"), "size",
                                                           SD_JSON_BUILD_UNSIGNED((uint64_t) st.st_size)),
                              SD_JSON_BUILD_PAIR_CONDITION(streq(s->held_kind, "vfio"), "device",
                                                           SD_JSON_BUILD_STRING("0000:00:03.0")));
}

static int on_register(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                       void *userdata)
{
        Server *s = userdata;
        const char *name = string_at(parameters, "name"), *secret = string_at(parameters, "secret");
        sd_json_variant *list = NULL, *fd = NULL;
        int r;

        /* Names that want an error. */
        if (streq(name, "MachineExists") || streq(name, "NotOwner"))
                return sd_varlink_errorbo(link, streq(name, "NotOwner") ? I "NotOwner" : I "MachineExists",
                                          SD_JSON_BUILD_PAIR_STRING("machine", name));
        if (streq(name, "QuotaExceeded"))
                return sd_varlink_errorbo(link, I "QuotaExceeded",
                                          SD_JSON_BUILD_PAIR_STRING("what", "machines"),
                                          SD_JSON_BUILD_PAIR_UNSIGNED("limit", 7));
        if (streq(name, "Stranded"))
                return sd_varlink_errorbo(link, I "Stranded", SD_JSON_BUILD_PAIR_STRING("machine", name),
                                          SD_JSON_BUILD_PAIR_STRING("reason", "device missing"));
        if (streq(name, "Dropped-always") || (streq(name, "Dropped-twice") && s->n_dropped < 2)) {
                s->n_dropped++;
                drop_links(s);
                return 0;
        }
        if (streq(name, "Nonsense"))
                return sd_varlink_replybo(link, SD_JSON_BUILD_PAIR_STRING("secret", "short"));
        if (secret && !streq(secret, SECRET))
                return sd_varlink_errorbo(link, I "NotOwner", SD_JSON_BUILD_PAIR_STRING("machine", name));
        if (streq(name, "wants-secret") && !secret)
                return sd_varlink_errorbo(link, I "NotOwner", SD_JSON_BUILD_PAIR_STRING("machine", name));

        s->known = true;
        if (s->held_fd >= 0) {
                ck_assert_int_ge(describe(s, &fd), 0);
                ck_assert_int_ge(sd_json_variant_new_array(&list, &fd, 1), 0);
        } else
                ck_assert_int_ge(sd_json_variant_new_array(&list, NULL, 0), 0);
        r = sd_varlink_replybo(link, SD_JSON_BUILD_PAIR_STRING("secret", SECRET),
                               SD_JSON_BUILD_PAIR_UNSIGNED("generation", 3),
                               SD_JSON_BUILD_PAIR_STRING("state", s->state),
                               SD_JSON_BUILD_PAIR("fileDescriptors", SD_JSON_BUILD_VARIANT(list)));
        sd_json_variant_unref(list);
        sd_json_variant_unref(fd);
        return r;
}

static int on_watch(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                    void *userdata)
{
        Server *s = userdata;

        sd_varlink_unref(s->watch);
        s->watch = sd_varlink_ref(link);
        return sd_varlink_notifybo(link, SD_JSON_BUILD_PAIR_STRING("event", "attached"),
                                   SD_JSON_BUILD_PAIR_STRING("state", s->state));
}

static int on_preserve(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                       void *userdata)
{
        Server *s = userdata;
        const char *name = string_at(parameters, "name"), *kind = string_at(parameters, "kind");
        sd_json_variant *fd = NULL;
        int r;

        if (s->hang)
                return 1;
        if (streq(name, "unsupported"))
                return sd_varlink_errorbo(link, I "UnsupportedFileDescriptor",
                                          SD_JSON_BUILD_PAIR_STRING("name", name),
                                          SD_JSON_BUILD_PAIR_STRING("reason", "a pipe"));
        if (streq(name, "again"))
                return sd_varlink_errorbo(link, I "DuplicateFileDescriptor",
                                          SD_JSON_BUILD_PAIR_STRING("name", name),
                                          SD_JSON_BUILD_PAIR_STRING("other", "ram"));
        if (streq(name, "unknown-error"))
                return sd_varlink_errorbo(link, I "SomethingNew", SD_JSON_BUILD_PAIR_STRING("name", name));
        if (streq(name, "errno"))
                return sd_varlink_error_errno(link, -ENOSPC);

        r = sd_varlink_peek_dup_fd(link, 0);
        if (r < 0)
                return sd_varlink_errorbo(link, I "MissingFileDescriptor",
                                          SD_JSON_BUILD_PAIR_STRING("name", name));
        safe_close(s->held_fd);
        s->held_fd = r;
        snprintf(s->held_name, sizeof(s->held_name), "%s", name);
        snprintf(s->held_kind, sizeof(s->held_kind), "%s", kind);
        ck_assert_int_ge(describe(s, &fd), 0);
        r = sd_varlink_replybo(link, SD_JSON_BUILD_PAIR("fileDescriptor", SD_JSON_BUILD_VARIANT(fd)));
        sd_json_variant_unref(fd);
        return r;
}

#define BLOCKERS                                                                                            \
        "[{\"message\":\"guest memory is in files\",\"remedy\":\"use a memfd\"},"                           \
        "{\"message\":\"it is too old\"}]"

static int on_set_blockers(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                           void *userdata)
{
        _cleanup_free_ char *text = NULL;

        ck_assert_int_ge(sd_json_variant_format(sd_json_variant_by_key(parameters, "blockers"), 0, &text),
                         0);
        if (!streq(text, BLOCKERS) && !streq(text, "[]"))
                return sd_varlink_error_invalid_parameter_name(link, "blockers");
        return sd_varlink_reply(link, NULL);
}

static int on_retrieve(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                       void *userdata)
{
        Server *s = userdata;
        const char *name = string_at(parameters, "name");
        sd_json_variant *fd = NULL;
        int r, n = 1;

        if (streq(name, "two-fds"))
                n = 2;
        else if (streq(name, "no-fd"))
                n = 0;
        else if (s->held_fd < 0 || !streq(name, s->held_name))
                return sd_varlink_errorbo(link, I "NoSuchFileDescriptor",
                                          SD_JSON_BUILD_PAIR_STRING("name", name));
        for (int i = 0; i < n; i++)
                ck_assert_int_eq(sd_varlink_push_dup_fd(link, s->held_fd), i);
        ck_assert_int_ge(describe(s, &fd), 0);
        if (streq(name, "no-fd") || streq(name, "two-fds"))
                ck_assert_int_ge(sd_json_variant_set_field_string(&fd, "name", name), 0);
        r = sd_varlink_replybo(link, SD_JSON_BUILD_PAIR_INTEGER("fileDescriptor", 0),
                               SD_JSON_BUILD_PAIR("description", SD_JSON_BUILD_VARIANT(fd)));
        sd_json_variant_unref(fd);
        return r;
}

static int on_committed(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                        void *userdata)
{
        Server *s = userdata;

        if (s->drop_at_commit) {
                s->drop_at_commit = false;
                drop_links(s);
                return 0;
        }
        if (s->refuse_commit)
                return sd_varlink_errorbo(link, I "WrongState", SD_JSON_BUILD_PAIR_STRING("machine", "m"),
                                          SD_JSON_BUILD_PAIR_STRING("state", "aborting"));
        return sd_varlink_reply(link, NULL);
}

static int on_simple(sd_varlink *link, sd_json_variant *parameters, sd_varlink_method_flags_t flags,
                     void *userdata)
{
        return ((Server *) userdata)->hang ? 1 : sd_varlink_reply(link, NULL);
}

static int on_command(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
        char line[64] = {}, event[32], state[32];
        Server *s = userdata;

        if (recv(fd, line, sizeof(line) - 1, 0) <= 0)
                return sd_event_exit(s->event, 0);
        switch (line[0]) {
        case 'E':
                ck_assert_int_eq(sscanf(line + 1, "%31s %31s", event, state), 2);
                ck_assert_int_ge(sd_varlink_notifybo(s->watch, SD_JSON_BUILD_PAIR_STRING("event", event),
                                                     SD_JSON_BUILD_PAIR_STRING("state", state),
                                                     SD_JSON_BUILD_PAIR_STRING("updateId", SECRET),
                                                     SD_JSON_BUILD_PAIR_UNSIGNED("remainingUSec", 5000000),
                                                     SD_JSON_BUILD_PAIR_STRING("reason", "because")),
                                 0);
                ck_assert_int_ge(sd_varlink_flush(s->watch), 0);
                break;
        case 'S':
                snprintf(s->state_buffer, sizeof(s->state_buffer), "%s", line + 1);
                break;
        case 'D':
                drop_links(s);
                break;
        case 'W':
                ck_assert_int_ge(sd_varlink_replybo(s->watch, SD_JSON_BUILD_PAIR_STRING("event", "finished"),
                                                    SD_JSON_BUILD_PAIR_STRING("state", "running")),
                                 0);
                break;
        case 'K':
                s->drop_at_commit = true;
                break;
        case 'N':
                s->refuse_commit = true;
                break;
        case 'H':
                s->hang = true;
                break;
        case 'F':
                s->held_fd = safe_close(s->held_fd);
                break;
        default:
                ck_abort_msg("command %s", line);
        }
        ck_assert_int_eq(send(fd, "k", 1, 0), 1);
        return 0;
}

static void serve(const char *path, int control)
{
        Server s = { .held_fd = -EBADF };

        s.state = strcpy(s.state_buffer, "running");
        ck_assert_int_ge(sd_event_new(&s.event), 0);
        ck_assert_int_ge(sd_varlink_server_new(&s.server, SD_VARLINK_SERVER_INHERIT_USERDATA), 0);
        sd_varlink_server_set_userdata(s.server, &s);
        ck_assert_int_ge(sd_varlink_server_add_interface(s.server, &vl_interface_org_luvfio_Machine), 0);
        ck_assert_int_ge(sd_varlink_server_bind_method_many(s.server, I "Register", on_register, I "Watch",
                                                            on_watch, I "Preserve", on_preserve,
                                                            I "SetBlockers", on_set_blockers, I "Retrieve",
                                                            on_retrieve, I "Committed", on_committed,
                                                            I "Prepared", on_simple, I "Quiesced", on_simple,
                                                            I "Resumed", on_simple, I "Withdraw", on_simple),
                         0);
        ck_assert_int_ge(sd_varlink_server_bind_connect(s.server, on_connect), 0);
        ck_assert_int_ge(sd_varlink_server_bind_disconnect(s.server, on_disconnect), 0);
        ck_assert_int_ge(sd_varlink_server_listen_address(s.server, path, 0600), 0);
        ck_assert_int_ge(sd_varlink_server_attach_event(s.server, s.event, 0), 0);
        ck_assert_int_ge(sd_event_add_io(s.event, NULL, control, POLLIN, on_command, &s), 0);
        ck_assert_int_eq(send(control, "k", 1, 0), 1);
        (void) sd_event_loop(s.event);
        _exit(0);
}

/* -- the test's side -- */

typedef struct Seen {
        char log[512]; /* callbacks as letters: A attached, L lost, p q c a r f */
        enum luvfio_state state;
        char reason[128];
        char update_id[40];
        uint64_t remaining_usec;
        bool answer; /* answer from within the callback */
        bool unref;  /* drop the object from within the callback */
        int result;
} Seen;

static char directory[64], path[96];
static pid_t server_pid;
static int control_fd = -EBADF;
static Seen seen;

static void server_start(void)
{
        int pair[2];
        char c;

        (void) unlink(path);
        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
        server_pid = fork();
        ck_assert_int_ge(server_pid, 0);
        if (server_pid == 0) {
                close(pair[0]);
                serve(path, pair[1]);
        }
        close(pair[1]);
        control_fd = pair[0];
        ck_assert_int_eq(recv(control_fd, &c, 1, 0), 1);
}

static void server_stop(void)
{
        if (server_pid <= 0)
                return;
        kill(server_pid, SIGKILL);
        waitpid(server_pid, NULL, 0);
        server_pid = 0;
        control_fd = safe_close(control_fd);
}

static void command(const char *line)
{
        char c;

        ck_assert_int_eq(send(control_fd, line, strlen(line), 0), (ssize_t) strlen(line));
        ck_assert_int_eq(recv(control_fd, &c, 1, 0), 1);
}

static void setup(void)
{
        strcpy(directory, "/tmp/test-lib-XXXXXX");
        ck_assert_ptr_nonnull(mkdtemp(directory));
        snprintf(path, sizeof(path), "%s/socket", directory);
        seen = (Seen) {};
        server_start();
}

static void teardown(void)
{
        server_stop();
        (void) unlink(path);
        (void) rmdir(directory);
}

static void note(char c, const struct luvfio_event *event, const char *reason)
{
        size_t n = strlen(seen.log);

        ck_assert_uint_lt(n, sizeof(seen.log) - 1);
        seen.log[n] = c;
        if (event) {
                seen.state = event->state;
                seen.remaining_usec = event->remaining_usec;
                snprintf(seen.update_id, sizeof(seen.update_id), "%s", strempty(event->update_id));
                reason = event->reason;
        }
        snprintf(seen.reason, sizeof(seen.reason), "%s", strempty(reason));
}

static void on_attached(struct luvfio *l, const struct luvfio_event *e, void *u)
{
        note('A', e, NULL);
}
static void on_lost(struct luvfio *l, const char *reason, void *u)
{
        note('L', NULL, reason);
        if (seen.unref)
                luvfio_unref(l);
}
static void on_prepare(struct luvfio *l, const struct luvfio_event *e, void *u)
{
        note('p', e, NULL);
        if (seen.answer)
                seen.result = luvfio_prepared(l);
}
static void on_quiesce(struct luvfio *l, const struct luvfio_event *e, void *u)
{
        note('q', e, NULL);
        if (seen.answer)
                seen.result = luvfio_quiesced(l, 0);
}
static void on_commit(struct luvfio *l, const struct luvfio_event *e, void *u)
{
        note('c', e, NULL);
        if (seen.answer)
                seen.result = luvfio_committed(l);
}
static void on_abort(struct luvfio *l, const struct luvfio_event *e, void *u)
{
        note('a', e, NULL);
        if (seen.answer)
                seen.result = luvfio_resumed(l, 0);
        ck_assert_int_eq(luvfio_process(l), -EBUSY);
}
static void on_resume(struct luvfio *l, const struct luvfio_event *e, void *u)
{
        note('r', e, NULL);
}
static void on_finished(struct luvfio *l, const struct luvfio_event *e, void *u)
{
        note('f', e, NULL);
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

static struct luvfio *new_client(const char *machine)
{
        struct luvfio *l;

        ck_assert_int_eq(luvfio_new(&l, machine), 0);
        ck_assert_int_eq(luvfio_set_socket(l, path), 0);
        ck_assert_int_eq(luvfio_set_handlers(l, &handlers, NULL), 0);
        return l;
}

/* Runs the loop until `log` was seen, at most 10 s. */
static void expect(struct luvfio *l, const char *log)
{
        uint64_t end = luvfio_now() + 10 * USEC_PER_SEC;

        while (!streq(seen.log, log)) {
                struct pollfd p = { .fd = luvfio_get_fd(l), .events = POLLIN };
                uint64_t now = luvfio_now();

                if (now >= end || strncmp(seen.log, log, strlen(seen.log)) != 0)
                        ck_abort_msg("seen '%s', expected '%s' (%s)", seen.log, log, luvfio_get_error(l));
                (void) poll(&p, 1, (int) ((end - now) / USEC_PER_MSEC) + 1);
                ck_assert_int_eq(luvfio_process(l), 0);
        }
        /* Nothing more comes. */
        for (int i = 0; i < 3; i++) {
                struct pollfd p = { .fd = luvfio_get_fd(l), .events = POLLIN };

                (void) poll(&p, 1, 20);
                ck_assert_int_eq(luvfio_process(l), 0);
        }
        ck_assert_str_eq(seen.log, log);
}

static struct luvfio *attached_client(void)
{
        struct luvfio *l = new_client("m");

        ck_assert_msg(luvfio_register(l) == 0, "%s", luvfio_get_error(l));
        expect(l, "A");
        return l;
}

static struct luvfio *quiesced_client(void)
{
        struct luvfio *l = attached_client();

        seen.answer = true;
        command("Eprepare preparing");
        expect(l, "Ap");
        command("Equiesce quiescing");
        expect(l, "Apq");
        ck_assert_int_eq(seen.result, 0);
        ck_assert_int_eq(luvfio_get_state(l), LUVFIO_STATE_QUIESCED);
        return l;
}

START_TEST(test_names)
{
        struct luvfio *l;

        ck_assert_int_eq(luvfio_new(&l, ""), -EINVAL);
        ck_assert_int_eq(luvfio_new(&l, NULL), -EINVAL);
        ck_assert_int_eq(luvfio_new(&l, "-a"), -EINVAL);
        ck_assert_int_eq(luvfio_new(&l, "a/b"), -EINVAL);
        ck_assert_int_eq(luvfio_new(&l, "a234567890123456789012345678901234567890123456789"), -EINVAL);
        ck_assert_int_eq(luvfio_new(&l, "a23456789012345678901234567890123456789012345678"), 0);
        ck_assert_int_eq(luvfio_get_state(l), -ENODATA);
        ck_assert_ptr_null(luvfio_get_secret(l));
        ck_assert_int_eq(luvfio_set_secret(l, "zz"), -EINVAL);
        ck_assert_int_eq(luvfio_prepared(l), -ENOTCONN);
        ck_assert_ptr_null(luvfio_unref(l));
        ck_assert_ptr_null(luvfio_unref(NULL));
        ck_assert_str_eq(luvfio_state_to_string(LUVFIO_STATE_STRANDED), "stranded");
        ck_assert_str_eq(luvfio_kind_to_string(LUVFIO_KIND_STATE), "state");
        ck_assert_str_eq(luvfio_outcome_to_string(LUVFIO_OUTCOME_REBUILT), "rebuilt");
        ck_assert_ptr_null(luvfio_kind_to_string((enum luvfio_kind) 77));
}
END_TEST

START_TEST(test_register)
{
        struct luvfio *l = attached_client();

        ck_assert_int_eq(luvfio_get_state(l), LUVFIO_STATE_RUNNING);
        ck_assert_int_eq(luvfio_is_attached(l), 1);
        ck_assert_uint_eq(luvfio_get_generation(l), 3);
        ck_assert_str_eq(luvfio_get_secret(l), SECRET);
        ck_assert_ptr_null(luvfio_list_fds(l, 0));
        ck_assert_int_eq(luvfio_register(l), -EALREADY);
        ck_assert_int_eq(luvfio_withdraw(l), 0);
        ck_assert_int_eq(luvfio_get_state(l), -ENODATA);
        ck_assert_int_eq(luvfio_register(l), 0);
        luvfio_unref(l);
}
END_TEST

START_TEST(test_environment)
{
        struct luvfio *l;

        setenv("LUVFIO_SOCKET", path, 1);
        ck_assert_int_eq(luvfio_new(&l, "m"), 0);
        ck_assert_int_eq(luvfio_register(l), 0);
        luvfio_unref(l);
        unsetenv("LUVFIO_SOCKET");
}
END_TEST

START_TEST(test_no_server)
{
        struct luvfio *l = new_client("m");

        server_stop();
        ck_assert_int_eq(luvfio_register(l), -ENOTCONN);
        ck_assert_ptr_nonnull(strstr(luvfio_get_error(l), path));
        ck_assert_int_eq(luvfio_get_state(l), -ENODATA);
        server_start();
        ck_assert_int_eq(luvfio_register(l), 0);
        luvfio_unref(l);
}
END_TEST

START_TEST(test_blockers)
{
        const struct luvfio_blocker blockers[] = { { "guest memory is in files", "use a memfd" },
                                                   { "it is too old", NULL } };
        struct luvfio *l = new_client("m");

        ck_assert_int_eq(luvfio_set_blockers(l, blockers, 2), -ENOTCONN);
        luvfio_unref(l);
        l = attached_client();
        ck_assert_int_eq(luvfio_set_blockers(l, blockers, 2), 0);
        ck_assert_int_eq(luvfio_set_blockers(l, NULL, 0), 0);
        ck_assert_int_lt(luvfio_set_blockers(l, blockers, 1), 0);
        luvfio_unref(l);
}
END_TEST

/* luvfiod is killed before it has answered, as it can be while it restores machines after the jump. */
START_TEST(test_register_lost)
{
        struct luvfio *l = new_client("Dropped-twice");
        uint64_t begin;

        ck_assert_msg(luvfio_register(l) == 0, "%s", luvfio_get_error(l));
        expect(l, "A");
        luvfio_unref(l);

        l = new_client("Dropped-always");
        ck_assert_int_eq(luvfio_set_timeout(l, 200 * USEC_PER_MSEC), 0);
        begin = luvfio_now();
        ck_assert_int_eq(luvfio_register(l), -ENOTCONN);
        ck_assert_uint_ge(luvfio_now() - begin, 200 * USEC_PER_MSEC);
        ck_assert_int_eq(luvfio_get_state(l), -ENODATA);
        luvfio_unref(l);
}
END_TEST

START_TEST(test_errors)
{
        static const struct {
                const char *machine;
                int error;
                const char *text;
        } table[] = {
                { "MachineExists", -EEXIST, "machine: MachineExists" },
                { "NotOwner", -EPERM, "machine: NotOwner" },
                { "QuotaExceeded", -EDQUOT, "what: machines; limit: 7" },
                { "Stranded", -ESTALE, "device missing" },
                { "Nonsense", -EBADMSG, "makes no sense" },
        };
        _cleanup_close_ int fd = memfd_create("test", MFD_CLOEXEC);
        struct luvfio *l;

        for (size_t i = 0; i < ELEMENTSOF(table); i++) {
                l = new_client(table[i].machine);
                ck_assert_int_eq(luvfio_register(l), table[i].error);
                ck_assert_msg(strstr(luvfio_get_error(l), table[i].text), "%s", luvfio_get_error(l));
                luvfio_unref(l);
        }

        l = attached_client();
        ck_assert_int_eq(luvfio_preserve(l, "unsupported", LUVFIO_KIND_MEMFD, fd, NULL), -EOPNOTSUPP);
        ck_assert_ptr_nonnull(strstr(luvfio_get_error(l), "reason: a pipe"));
        ck_assert_ptr_nonnull(strstr(luvfio_get_error(l), "Preserve 'unsupported' of machine 'm'"));
        ck_assert_int_eq(luvfio_preserve(l, "again", LUVFIO_KIND_MEMFD, fd, NULL), -ENOTUNIQ);
        ck_assert_ptr_nonnull(strstr(luvfio_get_error(l), "other: ram"));
        ck_assert_int_eq(luvfio_preserve(l, "unknown-error", LUVFIO_KIND_MEMFD, fd, NULL), -EREMOTEIO);
        ck_assert_ptr_nonnull(strstr(luvfio_get_error(l), "SomethingNew"));
        ck_assert_int_eq(luvfio_preserve(l, "errno", LUVFIO_KIND_MEMFD, fd, NULL), -ENOSPC);
        ck_assert_int_eq(luvfio_preserve(l, "closed", LUVFIO_KIND_MEMFD, 9999, NULL), -EBADF);
        ck_assert_int_eq(luvfio_preserve(l, "kind", (enum luvfio_kind) 9, fd, NULL), -EINVAL);
        ck_assert_int_eq(luvfio_retrieve(l, "nothing", NULL), -ENOENT);
        ck_assert_int_eq(luvfio_is_attached(l), 1);
        luvfio_unref(l);
}
END_TEST

START_TEST(test_fds)
{
        _cleanup_close_ int fd = memfd_create("test", MFD_CLOEXEC), back = -EBADF;
        struct luvfio *l = attached_client();
        const struct luvfio_fd *info;
        struct stat a, b;

        ck_assert_int_eq(ftruncate(fd, 12345), 0);
        ck_assert_int_eq(luvfio_preserve(l, "ram", LUVFIO_KIND_MEMFD, fd, &info), 0);
        ck_assert_str_eq(info->name, "ram");
        ck_assert_int_eq(info->outcome, LUVFIO_OUTCOME_PRESERVED);
        ck_assert_uint_eq(info->size, 12345);
        ck_assert_uint_eq(info->token, 65537);
        ck_assert_ptr_null(info->device);
        ck_assert_ptr_eq(luvfio_list_fds(l, 0), info);
        ck_assert_ptr_eq(luvfio_find_fd(l, "ram"), info);
        ck_assert_ptr_null(luvfio_list_fds(l, 1));

        back = luvfio_retrieve(l, "ram", &info);
        ck_assert_int_ge(back, 0);
        ck_assert_int_eq(fstat(fd, &a), 0);
        ck_assert_int_eq(fstat(back, &b), 0);
        ck_assert(a.st_ino == b.st_ino);
        ck_assert_int_eq(fcntl(back, F_GETFD), FD_CLOEXEC);

        /* A name out of the list, which is a new one once the connection is. */
        command("D");
        safe_close(back);
        back = luvfio_retrieve(l, luvfio_list_fds(l, 0)->name, &info);
        ck_assert_int_ge(back, 0);
        ck_assert_str_eq(info->name, "ram");

        /* An answer whose fds are not exactly one, or that is not what is said of it. */
        ck_assert_int_eq(luvfio_retrieve(l, "two-fds", NULL), -EBADMSG);
        ck_assert_int_eq(luvfio_retrieve(l, "no-fd", NULL), -EBADMSG);

        ck_assert_int_eq(luvfio_preserve(l, "nic", LUVFIO_KIND_VFIO, fd, &info), 0);
        ck_assert_int_eq(info->outcome, LUVFIO_OUTCOME_RESET);
        ck_assert_str_eq(info->device, "0000:00:03.0");
        luvfio_unref(l);
}
END_TEST

START_TEST(test_update_and_abort)
{
        struct luvfio *l = quiesced_client();

        ck_assert_uint_eq(seen.remaining_usec, 5000000);
        ck_assert_str_eq(seen.update_id, SECRET);
        command("Ecommit quiesced");
        expect(l, "Apqc");
        ck_assert_int_eq(luvfio_get_state(l), LUVFIO_STATE_COMMITTED);
        command("Eabort aborting");
        expect(l, "Apqca");
        ck_assert_str_eq(seen.reason, "because");
        ck_assert_int_eq(luvfio_get_state(l), LUVFIO_STATE_RUNNING);
        command("Efinished running");
        expect(l, "Apqcaf");
        luvfio_unref(l);
}
END_TEST

START_TEST(test_lost_while_running)
{
        struct luvfio *l = attached_client();

        command("D");
        expect(l, "ALA");
        ck_assert_int_eq(luvfio_is_attached(l), 1);
        ck_assert_int_eq(luvfio_preserve(l, "errno", LUVFIO_KIND_MEMFD, 0, NULL), -ENOSPC);
        luvfio_unref(l);
}
END_TEST

START_TEST(test_lost_before_commit)
{
        struct luvfio *l = quiesced_client();

        command("Equiesce quiescing");
        expect(l, "Apqq");
        command("D");
        /* At once, not when the connection is back. */
        expect(l, "ApqqLaA");
        ck_assert_int_eq(luvfio_get_state(l), LUVFIO_STATE_RUNNING);

        /* luvfiod may not have noticed: what it commits now is not answered. */
        command("Ecommit quiesced");
        expect(l, "ApqqLaA");
        ck_assert_int_eq(luvfio_committed(l), -EPROTO);
        luvfio_unref(l);
}
END_TEST

START_TEST(test_lost_after_commit)
{
        struct luvfio *l = quiesced_client();

        command("Ecommit quiesced");
        expect(l, "Apqc");
        server_stop();
        expect(l, "ApqcL");
        server_start();
        command("Scommitted");
        /* Nothing but luvfiod's word lets it run. */
        expect(l, "ApqcLA");
        command("Eabort aborting");
        expect(l, "ApqcLAa");
        ck_assert_int_eq(seen.result, 0);
        luvfio_unref(l);
}
END_TEST

START_TEST(test_lost_during_commit)
{
        struct luvfio *l = quiesced_client();

        command("Squiesced");
        command("K");
        command("Ecommit quiesced");
        /* The answer never came: it may have been taken, so no abort. */
        expect(l, "ApqcLA");
        ck_assert_int_eq(seen.result, -ECONNRESET);
        /* luvfiod had not got it, and asks again. */
        command("Ecommit quiesced");
        expect(l, "ApqcLAc");
        ck_assert_int_eq(seen.result, 0);
        luvfio_unref(l);
}
END_TEST

START_TEST(test_rolled_back_meanwhile)
{
        struct luvfio *l = quiesced_client();

        command("Ecommit quiesced");
        expect(l, "Apqc");
        /* A luvfiod that was restarted and has rolled back says so by the state it has the machine in. */
        command("Srunning");
        command("D");
        expect(l, "ApqcLAa");
        luvfio_unref(l);
}
END_TEST

START_TEST(test_refused_commit)
{
        struct luvfio *l = quiesced_client();

        command("N");
        command("Ecommit quiesced");
        expect(l, "Apqc");
        ck_assert_int_eq(seen.result, -EPROTO);
        ck_assert_int_eq(luvfio_get_state(l), LUVFIO_STATE_ABORTING);
        /* A clear no: the rule for a lost connection is that of before. */
        command("D");
        expect(l, "ApqcLaA");
        luvfio_unref(l);
}
END_TEST

START_TEST(test_missed_events)
{
        struct luvfio *l = attached_client();

        command("Squiescing");
        command("D");
        expect(l, "ALAq");
        /* If luvfiod sends it, too, it is heard once. */
        command("Equiesce quiescing");
        expect(l, "ALAq");
        command("Eabort aborting");
        expect(l, "ALAqa");
        command("Equiesce quiescing");
        expect(l, "ALAqaq");
        luvfio_unref(l);
}
END_TEST

START_TEST(test_incoming)
{
        struct luvfio *l = new_client("m");

        command("Srestoring");
        ck_assert_int_eq(luvfio_register(l), 0);
        ck_assert_int_eq(luvfio_get_state(l), LUVFIO_STATE_RESTORING);
        expect(l, "A");
        command("Eresume resuming");
        expect(l, "Ar");
        ck_assert_int_eq(luvfio_resumed(l, 1), 0);
        command("Efinished running");
        expect(l, "Arf");
        luvfio_unref(l);

        seen = (Seen) {};
        l = new_client("m");
        command("Sresuming");
        ck_assert_int_eq(luvfio_register(l), 0);
        expect(l, "Ar");
        ck_assert_int_eq(luvfio_resumed(l, 1), 0);
        /* A luvfiod that was restarted has not finished it, and asks again. */
        command("D");
        expect(l, "ArLAr");
        ck_assert_int_eq(luvfio_resumed(l, 1), 0);
        /* Once more changes nothing. */
        ck_assert_int_eq(luvfio_resumed(l, 1), 0);
        /* The next one has, while nobody listened. */
        command("Srunning");
        command("D");
        expect(l, "ArLArLAf");
        /* It is heard once. */
        command("D");
        expect(l, "ArLArLAfLA");
        luvfio_unref(l);
}
END_TEST

START_TEST(test_forgotten)
{
        _cleanup_close_ int fd = memfd_create("test", MFD_CLOEXEC);
        struct luvfio *l = attached_client();

        ck_assert_int_eq(luvfio_preserve(l, "ram", LUVFIO_KIND_MEMFD, fd, NULL), 0);
        ck_assert_ptr_nonnull(luvfio_find_fd(l, "ram"));
        command("D");
        expect(l, "ALA");
        ck_assert_ptr_nonnull(luvfio_find_fd(l, "ram"));
        command("F");
        command("D");
        expect(l, "ALALA");
        ck_assert_ptr_null(luvfio_find_fd(l, "ram"));
        luvfio_unref(l);
}
END_TEST

START_TEST(test_watch_ended)
{
        struct luvfio *l = attached_client();

        command("W");
        expect(l, "AfLA");
        luvfio_unref(l);
}
END_TEST

START_TEST(test_timeout)
{
        struct luvfio *l = attached_client();

        ck_assert_int_eq(luvfio_set_timeout(l, 0), -EINVAL);
        ck_assert_int_eq(luvfio_set_timeout(l, 100 * USEC_PER_MSEC), 0);
        command("H");
        ck_assert_int_eq(luvfio_prepared(l), -ETIMEDOUT);
        ck_assert_int_eq(luvfio_preserve(l, "ram", LUVFIO_KIND_MEMFD, 0, NULL), -ETIMEDOUT);
        luvfio_unref(l);
}
END_TEST

START_TEST(test_secret)
{
        struct luvfio *l = new_client("wants-secret");
        char file[128];
        struct stat st;
        int fd;

        snprintf(file, sizeof(file), "%s/secret", directory);
        ck_assert_int_eq(luvfio_load_secret(l, file), -ENOENT);
        ck_assert_int_eq(luvfio_save_secret(l, file), -ENODATA);
        ck_assert_int_eq(luvfio_register(l), -EPERM);
        ck_assert_int_eq(luvfio_set_secret(l, SECRET), 0);
        ck_assert_int_eq(luvfio_register(l), 0);
        ck_assert_int_eq(luvfio_save_secret(l, file), 0);
        ck_assert_int_eq(stat(file, &st), 0);
        ck_assert_int_eq(st.st_mode & 07777, 0600);
        luvfio_unref(l);

        l = new_client("wants-secret");
        ck_assert_int_eq(luvfio_load_secret(l, file), 0);
        ck_assert_str_eq(luvfio_get_secret(l), SECRET);
        ck_assert_int_eq(luvfio_register(l), 0);

        fd = open(file, O_WRONLY | O_TRUNC | O_CLOEXEC);
        ck_assert_int_eq(write(fd, "x\n", 2), 2);
        close(fd);
        ck_assert_int_eq(luvfio_load_secret(l, file), -EBADMSG);
        ck_assert_int_eq(luvfio_load_secret(l, directory), -EBADMSG);
        (void) unlink(file);
        ck_assert_int_lt(luvfio_save_secret(l, "/nonexistent/secret"), 0);
        luvfio_unref(l);
}
END_TEST

START_TEST(test_unref_in_callback)
{
        struct luvfio *l = quiesced_client();
        struct pollfd p = { .fd = luvfio_get_fd(l), .events = POLLIN };

        seen.unref = true;
        command("D");
        ck_assert_int_eq(poll(&p, 1, 5000), 1);
        ck_assert_int_eq(luvfio_process(l), 0);
        /* Gone, and with it whatever would have been called after it. */
        ck_assert_str_eq(seen.log, "ApqL");
}
END_TEST

START_TEST(test_handlers_size)
{
        struct luvfio *l = new_client("m");
        struct luvfio_handlers h = handlers;

        h.size = sizeof(h) + 8;
        ck_assert_int_eq(luvfio_set_handlers(l, &h, NULL), -EINVAL);
        h.size = 0;
        ck_assert_int_eq(luvfio_set_handlers(l, &h, NULL), -EINVAL);
        /* A program built against an older library. */
        h.size = offsetof(struct luvfio_handlers, prepare);
        ck_assert_int_eq(luvfio_set_handlers(l, &h, NULL), 0);
        ck_assert_int_eq(luvfio_register(l), 0);
        expect(l, "A");
        command("Eprepare preparing");
        expect(l, "A");
        luvfio_unref(l);
}
END_TEST

START_TEST(test_sd_event)
{
        struct luvfio *l = new_client("m");
        sd_event *event = NULL;

        ck_assert_int_ge(sd_event_new(&event), 0);
        ck_assert_int_eq(luvfio_attach_event(l, event, 0), 0);
        ck_assert_int_eq(luvfio_attach_event(l, event, 0), -EBUSY);
        ck_assert_int_eq(luvfio_register(l), 0);
        for (int i = 0; i < 50 && !streq(seen.log, "A"); i++)
                ck_assert_int_ge(sd_event_run(event, 100 * USEC_PER_MSEC), 0);
        command("D");
        for (int i = 0; i < 50 && !streq(seen.log, "ALA"); i++)
                ck_assert_int_ge(sd_event_run(event, 100 * USEC_PER_MSEC), 0);
        ck_assert_str_eq(seen.log, "ALA");
        luvfio_unref(l);
        sd_event_unref(event);
}
END_TEST

int main(void)
{
        Suite *suite = suite_create("lib");
        TCase *tc = tcase_create("lib");
        SRunner *runner;
        int failed;

        (void) signal(SIGPIPE, SIG_IGN);
        tcase_add_checked_fixture(tc, setup, teardown);
        tcase_set_timeout(tc, 60);
        tcase_add_test(tc, test_names);
        tcase_add_test(tc, test_register);
        tcase_add_test(tc, test_environment);
        tcase_add_test(tc, test_no_server);
        tcase_add_test(tc, test_register_lost);
        tcase_add_test(tc, test_blockers);
        tcase_add_test(tc, test_errors);
        tcase_add_test(tc, test_fds);
        tcase_add_test(tc, test_update_and_abort);
        tcase_add_test(tc, test_lost_while_running);
        tcase_add_test(tc, test_lost_before_commit);
        tcase_add_test(tc, test_lost_after_commit);
        tcase_add_test(tc, test_lost_during_commit);
        tcase_add_test(tc, test_rolled_back_meanwhile);
        tcase_add_test(tc, test_refused_commit);
        tcase_add_test(tc, test_missed_events);
        tcase_add_test(tc, test_incoming);
        tcase_add_test(tc, test_forgotten);
        tcase_add_test(tc, test_watch_ended);
        tcase_add_test(tc, test_timeout);
        tcase_add_test(tc, test_secret);
        tcase_add_test(tc, test_unref_in_callback);
        tcase_add_test(tc, test_handlers_size);
        tcase_add_test(tc, test_sd_event);
        suite_add_tcase(suite, tc);

        runner = srunner_create(suite);
        srunner_set_tap(runner, "-");
        srunner_run_all(runner, CK_SILENT);
        failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed == 0 ? 0 : 1;
}
