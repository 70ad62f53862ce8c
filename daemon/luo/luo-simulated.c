/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "luo/fd-identify.h"
#include "luo/luo-internal.h"
#include "util/io.h"
#include "util/json-util.h"
#include "util/log.h"
#include "util/string-util.h"

/*
 * LUO without a kernel that has it. A session's fd is one end of a socket pair: when its last copy is
 * closed, wherever that was, the other end tells, as the kernel's release would. Preserved files are held as
 * dups; the jump is a re-exec in the same process, over which the dups and a memfd that describes them stay
 * open.
 */

typedef enum SimFault {
        SIM_FAULT_PROBE,
        SIM_FAULT_CREATE,
        SIM_FAULT_PRESERVE,
        SIM_FAULT_FREEZE,
        SIM_FAULT_RETRIEVE_SESSION,
        SIM_FAULT_RETRIEVE,
        SIM_FAULT_FINISH,
        _SIM_FAULT_MAX,
        _SIM_FAULT_INVALID = -EINVAL,
} SimFault;

static const char *const sim_fault_table[_SIM_FAULT_MAX] = {
        [SIM_FAULT_PROBE] = "probe",
        [SIM_FAULT_CREATE] = "create",
        [SIM_FAULT_PRESERVE] = "preserve",
        [SIM_FAULT_FREEZE] = "freeze",
        [SIM_FAULT_RETRIEVE_SESSION] = "retrieve_session",
        [SIM_FAULT_RETRIEVE] = "retrieve",
        [SIM_FAULT_FINISH] = "finish",
};

typedef struct SimSession SimSession;
typedef struct SimFile SimFile;

struct SimFile {
        SimSession *session;
        SimFile *next, *previous; /* in the session, in order of preservation */
        SimFile *bucket_next;     /* in the table of all files that are held */
        uint64_t dev, ino, token;
        int file_fd;
        int error; /* a retrieve that failed fails for ever */
};

struct SimSession {
        Luo *luo;
        SimSession *next, *previous; /* in order of creation */
        char *name;
        bool incoming, open, finished;
        int peer_fd;  /* the other end of the session's fd */
        uint64_t ino; /* of the session's fd */
        sd_event_source *closed_source;
        SimFile *first, *last;
};

typedef struct SimFail {
        SimFault fault;
        uint64_t n;
        bool and_on; /* all later ones too */
        int error;
} SimFail;

#define N_BUCKETS 4096u

typedef struct Simulation {
        SimSession *first, *last;
        SimFile *buckets[N_BUCKETS];
        SimFail *fails;
        size_t n_fails;
        uint64_t counters[_SIM_FAULT_MAX];
        int log_fd;
} Simulation;

_printf_(2, 3) static void sim_log(Simulation *sim, const char *format, ...)
{
        char line[256];
        va_list ap;
        int n;

        if (sim->log_fd < 0)
                return;
        va_start(ap, format);
        n = vsnprintf(line, sizeof(line) - 1, format, ap);
        va_end(ap);
        if (n < 0)
                return;
        n = MIN(n, (int) sizeof(line) - 2);
        line[n++] = '\n';
        /* A test's own file: what cannot be written there is seen to be missing. */
        (void) luv_write_all(sim->log_fd, line, (size_t) n);
}

/* Counts an operation; -errno if it is the one that is to fail. */
static int sim_fault(Simulation *sim, SimFault fault)
{
        uint64_t n = ++sim->counters[fault];

        for (size_t i = 0; i < sim->n_fails; i++) {
                const SimFail *f = &sim->fails[i];

                if (f->fault != fault || (f->and_on ? n < f->n : n != f->n))
                        continue;
                sim_log(sim, "fault %s %llu %s", sim_fault_table[fault], (unsigned long long) n,
                        strerrorname_np(-f->error));
                return f->error;
        }
        return 0;
}

static int sim_parse_fail(Simulation *sim, char *text)
{
        char *colon, *error;
        SimFail f = { .fault = _SIM_FAULT_INVALID, .error = -EIO }, *grown;
        int r;

        colon = strchr(text, ':');
        if (!colon)
                return -EINVAL;
        *colon++ = 0;
        error = strchr(colon, ':');
        if (error) {
                *error++ = 0;
                r = luv_parse_errno(error);
                if (r < 0)
                        return r;
                f.error = -r;
        }
        for (SimFault i = 0; i < _SIM_FAULT_MAX; i++)
                if (streq(sim_fault_table[i], text))
                        f.fault = i;
        if (f.fault < 0)
                return -EINVAL;
        f.and_on = strlen(colon) > 1 && colon[strlen(colon) - 1] == '+';
        if (f.and_on)
                colon[strlen(colon) - 1] = 0;
        r = luv_parse_u64(colon, &f.n);
        if (r < 0)
                return r;
        if (f.n == 0)
                return -EINVAL;
        grown = reallocarray(sim->fails, sim->n_fails + 1, sizeof(SimFail));
        if (!grown)
                return -ENOMEM;
        sim->fails = grown;
        sim->fails[sim->n_fails++] = f;
        return 0;
}

static int sim_parse_fails(Simulation *sim, const char *fail)
{
        _cleanup_free_ char *copy = strdup(fail);
        char *rest = copy, *one;
        int r;

        if (!copy)
                return -ENOMEM;
        while ((one = strsep(&rest, ","))) {
                r = sim_parse_fail(sim, one);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* Files. A file can be in one session only, and is looked up by what fstat says before it is compared. */

static SimFile **sim_bucket(Simulation *sim, uint64_t dev, uint64_t ino)
{
        return &sim->buckets[(ino ^ dev * 31) % N_BUCKETS];
}

static SimFile *file_free(SimFile *f)
{
        Simulation *sim = f->session->luo->data;
        SimFile **p;

        for (p = sim_bucket(sim, f->dev, f->ino); *p; p = &(*p)->bucket_next)
                if (*p == f) {
                        *p = f->bucket_next;
                        break;
                }
        if (f->previous)
                f->previous->next = f->next;
        else
                f->session->first = f->next;
        if (f->next)
                f->next->previous = f->previous;
        else
                f->session->last = f->previous;
        (void) safe_close(f->file_fd);
        free(f);
        return NULL;
}

/* FILE_FD is taken if it succeeds. Only outgoing files are in the table: incoming ones are nobody's yet. */
static int file_new(SimSession *s, int file_fd, uint64_t token, SimFile **ret)
{
        Simulation *sim = s->luo->data;
        struct stat st;
        SimFile *f;

        if (fstat(file_fd, &st) < 0)
                return negative_errno();
        f = calloc(1, sizeof(*f));
        if (!f)
                return -ENOMEM;
        *f = (SimFile) {
                .session = s,
                .previous = s->last,
                .dev = st.st_dev,
                .ino = st.st_ino,
                .token = token,
                .file_fd = file_fd,
        };
        if (s->last)
                s->last->next = f;
        else
                s->first = f;
        s->last = f;
        if (!s->incoming) {
                SimFile **bucket = sim_bucket(sim, f->dev, f->ino);

                f->bucket_next = *bucket;
                *bucket = f;
        }
        if (ret)
                *ret = f;
        return 0;
}

static SimFile *file_find(SimSession *s, uint64_t token)
{
        for (SimFile *f = s->first; f; f = f->next)
                if (f->token == token)
                        return f;
        return NULL;
}

static int file_held(Simulation *sim, int fd)
{
        struct stat st;

        if (fstat(fd, &st) < 0)
                return negative_errno();
        for (SimFile *f = *sim_bucket(sim, st.st_dev, st.st_ino); f; f = f->bucket_next) {
                int r;

                if (f->dev != st.st_dev || f->ino != st.st_ino)
                        continue;
                r = luv_fd_same(fd, f->file_fd);
                if (r != 0)
                        return r;
        }
        return 0;
}

/* Sessions. */

static SimSession *sim_session_free(SimSession *s)
{
        Simulation *sim = s->luo->data;

        while (s->last)
                (void) file_free(s->last);
        (void) sd_event_source_disable_unref(s->closed_source);
        (void) safe_close(s->peer_fd);
        if (s->previous)
                s->previous->next = s->next;
        else
                sim->first = s->next;
        if (s->next)
                s->next->previous = s->previous;
        else
                sim->last = s->previous;
        free(s->name);
        free(s);
        return NULL;
}

static int sim_session_new(Luo *l, const char *name, bool incoming, SimSession **ret)
{
        Simulation *sim = l->data;
        SimSession *s;

        s = calloc(1, sizeof(*s));
        if (!s)
                return -ENOMEM;
        *s = (SimSession) {
                .luo = l,
                .previous = sim->last,
                .incoming = incoming,
                .peer_fd = -EBADF,
        };
        if (sim->last)
                sim->last->next = s;
        else
                sim->first = s;
        sim->last = s;
        s->name = strdup(name);
        if (!s->name) {
                (void) sim_session_free(s);
                return -ENOMEM;
        }
        *ret = s;
        return 0;
}

/* The last copy of the session's fd was closed. */
static void sim_session_released(SimSession *s)
{
        Simulation *sim = s->luo->data;

        s->closed_source = sd_event_source_disable_unref(s->closed_source);
        s->peer_fd = safe_close(s->peer_fd);
        s->open = false;
        if (s->incoming && !s->finished) {
                sim_log(sim, "put-back %s", s->name);
                return;
        }
        if (!s->incoming)
                for (SimFile *f = s->last; f; f = f->previous)
                        sim_log(sim, "unpreserve %s %llu", s->name, (unsigned long long) f->token);
        sim_log(sim, "close %s", s->name);
        (void) sim_session_free(s);
}

static int dispatch_closed(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
        sim_session_released(userdata);
        return 0;
}

/* The kernel sees a close at once, so look before anything that depends on it. */
static void sim_release_closed(Simulation *sim)
{
        SimSession *next;

        for (SimSession *s = sim->first; s; s = next) {
                struct pollfd p = { .fd = s->peer_fd };

                next = s->next;
                if (s->open && poll(&p, 1, 0) > 0)
                        sim_session_released(s);
        }
}

/* Gives the session a new fd, which is returned. */
static int sim_session_open(SimSession *s)
{
        _cleanup_close_ int session_fd = -EBADF;
        int pair[2], r;
        struct stat st;

        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
                return negative_errno();
        session_fd = pair[0];
        s->peer_fd = pair[1];
        r = fstat(session_fd, &st) < 0 ? negative_errno() : 0;
        /* Nothing is ever written: readable means that the other end is gone. */
        if (r >= 0)
                r = sd_event_add_io(s->luo->event, &s->closed_source, s->peer_fd, 0, dispatch_closed, s);
        if (r < 0) {
                s->peer_fd = safe_close(s->peer_fd);
                return r;
        }
        (void) sd_event_source_set_description(s->closed_source, "luo-simulated-closed");
        s->ino = st.st_ino;
        s->open = true;
        return TAKE_FD(session_fd);
}

static SimSession *sim_session_find(Simulation *sim, bool incoming, const char *name)
{
        for (SimSession *s = sim->first; s; s = s->next)
                if (s->incoming == incoming && streq(s->name, name))
                        return s;
        return NULL;
}

static int simulated_open_session(Luo *l, bool incoming, const char *name)
{
        Simulation *sim = l->data;
        SimSession *s;
        int r, fd;

        r = sim_fault(sim, incoming ? SIM_FAULT_RETRIEVE_SESSION : SIM_FAULT_CREATE);
        if (r < 0)
                return r;

        s = sim_session_find(sim, incoming, name);
        if (s && s->open) {
                sim_release_closed(sim);
                s = sim_session_find(sim, incoming, name);
        }
        if (incoming) {
                if (!s)
                        return -ENOENT;
                if (s->open)
                        return -EINVAL;
                fd = sim_session_open(s);
                if (fd >= 0)
                        sim_log(sim, "retrieve-session %s", name);
                return fd;
        }

        if (s)
                return -EEXIST;
        r = sim_session_new(l, name, false, &s);
        if (r < 0)
                return r;
        fd = sim_session_open(s);
        if (fd < 0)
                (void) sim_session_free(s);
        else
                sim_log(sim, "create %s", name);
        return fd;
}

static int simulated_session_attach(LuoSession *session)
{
        Simulation *sim = session->luo->data;
        SimSession *s = sim_session_find(sim, session->incoming, session->name);
        struct stat st;

        if (fstat(session->session_fd, &st) < 0)
                return negative_errno();
        if (!s || !s->open || s->ino != st.st_ino)
                return -EINVAL;
        session->data = s;
        return 0;
}

static void simulated_session_detach(LuoSession *session)
{
        session->data = NULL;
}

/* What LUO does with a session. */

static int sim_preserve(SimSession *s, int fd, uint64_t token)
{
        Simulation *sim = s->luo->data;
        _cleanup_close_ int copy = -EBADF;
        FdIdentity identity;
        int r;

        if (s->incoming)
                return -EINVAL;
        r = sim_fault(sim, SIM_FAULT_PRESERVE);
        if (r < 0)
                return r;
        if (file_find(s, token))
                return -EEXIST;
        r = luv_fd_identify(fd, true, &identity, NULL);
        if (r == -EOPNOTSUPP)
                return -ENOENT;
        if (r < 0)
                return r;
        /* The kernel has no file handler for it. */
        if (identity.kind == FD_KIND_IOMMUFD && luv_fd_outcome(FD_KIND_IOMMUFD, fd) == FD_OUTCOME_REBUILT)
                return -ENOENT;
        r = file_held(sim, fd);
        if (r < 0)
                return r;
        if (r > 0)
                return -EBUSY;
        copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        if (copy < 0)
                return negative_errno();
        r = file_new(s, copy, token, NULL);
        if (r < 0)
                return r;
        TAKE_FD(copy);
        sim_log(sim, "preserve %s %llu", s->name, (unsigned long long) token);
        return 0;
}

static int sim_retrieve(SimSession *s, uint64_t token)
{
        Simulation *sim = s->luo->data;
        SimFile *f;
        int r, fd;

        if (!s->incoming)
                return -EINVAL;
        f = file_find(s, token);
        if (!f)
                return -ENOENT;
        if (f->error < 0)
                return f->error;
        r = sim_fault(sim, SIM_FAULT_RETRIEVE);
        if (r < 0) {
                if (r != -EAGAIN)
                        f->error = r;
                return r;
        }
        fd = fcntl(f->file_fd, F_DUPFD_CLOEXEC, 3);
        if (fd < 0)
                return negative_errno();
        sim_log(sim, "retrieve %s %llu", s->name, (unsigned long long) token);
        return fd;
}

static int sim_finish(SimSession *s)
{
        Simulation *sim = s->luo->data;
        int r;

        if (!s->incoming)
                return -EINVAL;
        r = sim_fault(sim, SIM_FAULT_FINISH);
        if (r < 0)
                return r;
        while (s->last) {
                sim_log(sim, "finish %s %llu", s->name, (unsigned long long) s->last->token);
                (void) file_free(s->last);
        }
        s->finished = true;
        return 0;
}

static void simulated_start(LuoCall *c)
{
        SimSession *s = c->session->data;
        int r;

        switch (c->op) {
        case LUO_OP_PRESERVE:
                luv_luo_call_complete(c, sim_preserve(s, c->fd, c->token), -EBADF);
                break;
        case LUO_OP_RETRIEVE:
                r = sim_retrieve(s, c->token);
                luv_luo_call_complete(c, MIN(r, 0), r >= 0 ? r : -EBADF);
                break;
        case LUO_OP_FINISH:
                luv_luo_call_complete(c, sim_finish(s), -EBADF);
                break;
        default:
                assert(false);
        }
}

static int simulated_probe(Luo *l)
{
        return sim_fault(l->data, SIM_FAULT_PROBE);
}

static int simulated_read_abi(Luo *l, char **ret)
{
        *ret = strdup("simulated luvfio-v1 rw\n");
        return *ret ? 0 : -ENOMEM;
}

/* The jump. */

static int sim_freeze(Simulation *sim)
{
        int r;

        for (SimSession *s = sim->first; s; s = s->next)
                for (SimFile *f = s->first; f && !s->incoming; f = f->next) {
                        r = sim_fault(sim, SIM_FAULT_FREEZE);
                        if (r < 0) {
                                sim_log(sim, "unfreeze");
                                return r;
                        }
                        sim_log(sim, "freeze %s %llu", s->name, (unsigned long long) f->token);
                }
        return 0;
}

static int sim_describe_session(SimSession *s, struct json_object *sessions)
{
        struct json_object *o, *files = NULL;
        int r;

        r = luv_json_append_object(sessions, &o);
        if (r >= 0)
                r = luv_json_add_array(o, "files", &files);
        if (r >= 0)
                r = luv_json_add_string(o, "name", s->name);
        for (SimFile *f = s->first; f && r >= 0; f = f->next) {
                struct json_object *file;

                r = luv_json_append_object(files, &file);
                if (r >= 0)
                        r = luv_json_add_u64(file, "token", f->token);
                if (r >= 0)
                        r = luv_json_add_u64(file, "fd", (uint64_t) f->file_fd);
        }
        return r;
}

/* A memfd that says which fd is what, for the next incarnation. */
static int sim_describe(Simulation *sim)
{
        _cleanup_json_ struct json_object *o = json_object_new_object();
        struct json_object *sessions, *counters;
        const char *text;
        size_t size;
        int r;

        if (!o)
                return -ENOMEM;
        r = luv_json_add_array(o, "sessions", &sessions);
        if (r >= 0)
                r = luv_json_add_object(o, "counters", &counters);
        if (r < 0)
                return r;
        for (SimFault i = 0; i < _SIM_FAULT_MAX; i++) {
                r = luv_json_add_u64(counters, sim_fault_table[i], sim->counters[i]);
                if (r < 0)
                        return r;
        }
        for (SimSession *s = sim->first; s; s = s->next) {
                /* What came in and was not finished is not carried over, by LUO neither. */
                r = s->incoming ? 0 : sim_describe_session(s, sessions);
                if (r < 0)
                        return r;
        }
        text = json_object_to_json_string_length(o, JSON_C_TO_STRING_PLAIN, &size);
        if (!text)
                return -ENOMEM;
        return luv_memfd_sealed("luvfio-simulated-state", text, size);
}

static int sim_set_cloexec(Simulation *sim, bool cloexec)
{
        int r;

        for (SimSession *s = sim->first; s; s = s->next)
                for (SimFile *f = s->first; f && !s->incoming; f = f->next) {
                        r = luv_fd_set_cloexec(f->file_fd, cloexec);
                        if (r < 0)
                                return r;
                }
        return 0;
}

/* Moves a file's dup out of where the passed sockets must be. */
static int sim_make_room(Simulation *sim, int first_free)
{
        for (SimSession *s = sim->first; s; s = s->next)
                for (SimFile *f = s->first; f && !s->incoming; f = f->next) {
                        int fd;

                        if (f->file_fd >= first_free)
                                continue;
                        fd = fcntl(f->file_fd, F_DUPFD_CLOEXEC, first_free);
                        if (fd < 0)
                                return negative_errno();
                        (void) close(f->file_fd);
                        f->file_fd = fd;
                }
        return 0;
}

#define LISTEN_FDS_START 3

/* What stands where the passed sockets must be is put aside, to be put back if the exec fails. */
typedef struct Placed {
        int *aside, *sources;
        size_t n;
} Placed;

static void placed_done(Placed *p)
{
        for (size_t i = 0; i < p->n; i++) {
                if (p->aside && p->aside[i] >= 0) {
                        (void) dup3(p->aside[i], LISTEN_FDS_START + (int) i, O_CLOEXEC);
                        (void) close(p->aside[i]);
                } else if (p->aside && p->aside[i] == -ENOENT) {
                        (void) close(LISTEN_FDS_START + (int) i);
                }
                if (p->sources)
                        (void) safe_close(p->sources[i]);
        }
        free(p->aside);
        free(p->sources);
}

static int place_kept(Placed *p, const int *kept, size_t n)
{
        int first_free = LISTEN_FDS_START + (int) n;

        p->aside = calloc(n + 1, sizeof(int));
        p->sources = calloc(n + 1, sizeof(int));
        if (!p->aside || !p->sources)
                return -ENOMEM;
        for (size_t i = 0; i < n; i++)
                p->aside[i] = p->sources[i] = -EBADF;
        p->n = n;
        for (size_t i = 0; i < n; i++) {
                p->sources[i] = fcntl(kept[i], F_DUPFD_CLOEXEC, first_free);
                if (p->sources[i] < 0)
                        return negative_errno();
        }
        for (size_t i = 0; i < n; i++) {
                int at = LISTEN_FDS_START + (int) i, aside;

                aside = fcntl(at, F_DUPFD_CLOEXEC, first_free);
                if (aside < 0 && errno != EBADF)
                        return negative_errno();
                if (dup3(p->sources[i], at, 0) < 0) {
                        int r = negative_errno();

                        (void) safe_close(aside);
                        return r;
                }
                p->aside[i] = aside >= 0 ? aside : -ENOENT;
        }
        return 0;
}

static int set_environment(const char *name, uint64_t value)
{
        char text[24];

        (void) snprintf(text, sizeof(text), "%llu", (unsigned long long) value);
        return setenv(name, text, 1) < 0 ? negative_errno() : 0;
}

static int sim_pass_environment(int state_fd, char *const *names, size_t n)
{
        _cleanup_free_ char *joined = NULL;
        int r;

        for (size_t i = 0; i < n; i++) {
                char *longer;

                if (strchr(names[i], ':'))
                        return -EINVAL;
                longer = luv_strf("%s%s%s", strempty(joined), joined ? ":" : "", names[i]);
                if (!longer)
                        return -ENOMEM;
                free(joined);
                joined = longer;
        }
        r = set_environment(LUVFIO_HANDED_ENV, (uint64_t) state_fd);
        if (r >= 0)
                r = set_environment("LISTEN_PID", (uint64_t) getpid());
        if (r >= 0)
                r = set_environment("LISTEN_FDS", n);
        if (r >= 0 && setenv("LISTEN_FDNAMES", strempty(joined), 1) < 0)
                r = negative_errno();
        return r;
}

static void sim_drop_environment(void)
{
        static const char *const names[] = { LUVFIO_HANDED_ENV, "LISTEN_PID", "LISTEN_FDS",
                                             "LISTEN_FDNAMES" };

        for (size_t i = 0; i < ELEMENTSOF(names); i++)
                (void) unsetenv(names[i]);
}

static int sim_exec(Simulation *sim, char *const *argv, const int *kept, char *const *names, size_t n_kept)
{
        int first_free = LISTEN_FDS_START + (int) n_kept, r;
        _cleanup_close_ int described = -EBADF, state_fd = -EBADF;
        _cleanup_(placed_done) Placed placed = {};

        r = sim_make_room(sim, first_free);
        if (r < 0)
                return r;
        described = sim_describe(sim);
        if (described < 0)
                return described;
        state_fd = fcntl(described, F_DUPFD, first_free);
        if (state_fd < 0)
                return negative_errno();
        r = place_kept(&placed, kept, n_kept);
        if (r < 0)
                return r;
        r = sim_pass_environment(state_fd, names, n_kept);
        if (r < 0)
                return r;
        r = sim_set_cloexec(sim, false);
        if (r < 0)
                return r;
        (void) execv("/proc/self/exe", argv);
        return negative_errno();
}

static int simulated_jump(Luo *l, char *const *argv, const int *kept, char *const *kept_names, size_t n_kept)
{
        Simulation *sim = l->data;
        int r;

        sim_release_closed(sim);
        r = sim_freeze(sim);
        if (r < 0)
                return r;
        sim_log(sim, "jump");
        r = sim_exec(sim, argv, kept, kept_names, n_kept);
        (void) sim_set_cloexec(sim, true);
        sim_drop_environment();
        sim_log(sim, "unfreeze");
        return r;
}

/* The other side of it. */

static int sim_read_file(SimSession *s, struct json_object *o)
{
        _cleanup_close_ int fd = -EBADF;
        uint64_t token, number;
        int r;

        r = luv_json_get_u64(o, "the file", "token", false, &token, NULL);
        if (r >= 0)
                r = luv_json_get_u64(o, "the file", "fd", false, &number, NULL);
        if (r < 0)
                return r;
        if (number <= STDERR_FILENO || number > INT32_MAX)
                return -EBADMSG;
        r = luv_fd_set_cloexec((int) number, true);
        if (r < 0)
                return r;
        fd = (int) number;
        r = file_new(s, fd, token, NULL);
        if (r < 0)
                return r;
        TAKE_FD(fd);
        return 0;
}

static int sim_read_session(Luo *l, struct json_object *o)
{
        _cleanup_free_ char *name = NULL;
        struct json_object *files;
        SimSession *s;
        int r;

        r = luv_json_get_string(o, "the session", "name", false, &name, NULL);
        if (r >= 0)
                r = luv_json_get(o, "the session", "files", json_type_array, &files, NULL);
        if (r >= 0)
                r = sim_session_new(l, name, true, &s);
        if (r < 0)
                return r;
        for (size_t i = 0; i < json_object_array_length(files); i++) {
                r = sim_read_file(s, json_object_array_get_idx(files, i));
                if (r < 0)
                        return r;
        }
        return 0;
}

static int sim_read_state(Luo *l, int state_fd)
{
        _cleanup_json_ struct json_object *o = NULL;
        struct json_object *sessions, *counters;
        _cleanup_free_ char *text = NULL;
        Simulation *sim = l->data;
        size_t size;
        int r;

        if (lseek(state_fd, 0, SEEK_SET) < 0)
                return negative_errno();
        r = luv_read_fd(state_fd, LUVFIO_JSON_SIZE_MAX, &text, &size);
        if (r >= 0)
                r = luv_json_parse(text, size, &o, NULL);
        if (r >= 0)
                r = luv_json_get(o, "the state", "sessions", json_type_array, &sessions, NULL);
        if (r >= 0)
                r = luv_json_get(o, "the state", "counters", json_type_object, &counters, NULL);
        if (r < 0)
                return r;
        for (SimFault i = 0; i < _SIM_FAULT_MAX; i++) {
                r = luv_json_get_u64(counters, "the counters", sim_fault_table[i], true, &sim->counters[i],
                                     NULL);
                if (r < 0)
                        return r;
        }
        for (size_t i = 0; i < json_object_array_length(sessions); i++) {
                r = sim_read_session(l, json_object_array_get_idx(sessions, i));
                if (r < 0)
                        return r;
        }
        return 0;
}

static void simulated_done(Luo *l)
{
        Simulation *sim = l->data;

        if (!sim)
                return;
        while (sim->first)
                (void) sim_session_free(sim->first);
        (void) safe_close(sim->log_fd);
        free(sim->fails);
        free(sim);
        l->data = NULL;
}

static int simulated_init(Luo *l, int handed_fd, const char *fail)
{
        _cleanup_close_ int state_fd = handed_fd;
        const char *log = getenv("LUVFIO_SIMULATED_LOG");
        Simulation *sim;
        int r;

        sim = calloc(1, sizeof(*sim));
        if (!sim)
                return -ENOMEM;
        sim->log_fd = -EBADF;
        l->data = sim;
        if (log) {
                sim->log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0600);
                if (sim->log_fd < 0)
                        return luv_log_error(negative_errno(), "Cannot open $LUVFIO_SIMULATED_LOG %s", log);
        }
        if (fail) {
                r = sim_parse_fails(sim, fail);
                if (r < 0)
                        return r;
        }
        return state_fd >= 0 ? sim_read_state(l, state_fd) : 0;
}

const LuoBackendOps luv_luo_simulated_ops = {
        .init = simulated_init,
        .done = simulated_done,
        .probe = simulated_probe,
        .read_abi = simulated_read_abi,
        .open_session = simulated_open_session,
        .session_attach = simulated_session_attach,
        .session_detach = simulated_session_detach,
        .start = simulated_start,
        .jump = simulated_jump,
};
