/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <time.h>

#include "lib/client.h"

_public_ uint64_t luvfio_now(void)
{
        struct timespec ts;

        (void) clock_gettime(CLOCK_BOOTTIME, &ts);
        return (uint64_t) ts.tv_sec * USEC_PER_SEC + (uint64_t) ts.tv_nsec / NSEC_PER_USEC;
}

/* Notes the text of an error and returns r. */
int luv_client_fail(struct luvfio *l, int r, const char *format, ...)
{
        char *text = NULL;
        va_list ap;

        errno = -r;
        va_start(ap, format);
        if (vasprintf(&text, format, ap) < 0)
                text = NULL;
        va_end(ap);
        free(l->error);
        l->error = text;
        return r;
}

_public_ const char *luvfio_get_error(struct luvfio *l)
{
        return strempty(l->error);
}

static int replace_string(struct luvfio *l, char **p, const char *s)
{
        char *copy = strdup(s);

        if (!copy)
                return luv_client_fail(l, -ENOMEM, "machine '%s': out of memory", l->machine);
        free(*p);
        *p = copy;
        return 0;
}

static bool machine_name_is_valid(const char *s)
{
        static const char alnum[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
        size_t n = s ? strnlen(s, 49) : 0;

        return n >= 1 && n <= 48 && strchr(alnum, s[0]) &&
               strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-") == n;
}

static struct luvfio *client_free(struct luvfio *l)
{
        luvfio_detach_event(l);
        luv_client_events_stop(l);
        l->calls = sd_varlink_close_unref(l->calls);
        l->timer_fd = safe_close(l->timer_fd);
        l->epoll_fd = safe_close(l->epoll_fd);
        for (size_t i = 0; i < l->n_fds; i++)
                luv_client_fd_done(&l->fds[i]);
        free(l->fds);
        free(l->machine);
        free(l->socket);
        free(l->vmm);
        if (l->secret)
                explicit_bzero(l->secret, strlen(l->secret));
        free(l->secret);
        free(l->error);
        free(l->lost_reason);
        free(l);
        return NULL;
}

_public_ int luvfio_new(struct luvfio **ret, const char *machine)
{
        const char *socket = secure_getenv("LUVFIO_SOCKET");
        struct epoll_event timer = { .events = EPOLLIN };
        struct luvfio *l;
        int r;

        if (!ret || !machine_name_is_valid(machine))
                return -EINVAL;

        l = calloc(1, sizeof(*l));
        if (!l)
                return -ENOMEM;
        l->n_ref = 1;
        l->epoll_fd = l->timer_fd = -EBADF;
        l->timeout_usec = CLIENT_TIMEOUT_USEC;
        l->replayed = _EVENT_TYPE_INVALID;

        l->machine = strdup(machine);
        l->socket = strdup(socket && *socket ? socket : CLIENT_SOCKET);
        r = l->machine && l->socket ? 0 : -ENOMEM;
        if (r >= 0) {
                l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
                l->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
                if (l->epoll_fd < 0 || l->timer_fd < 0 ||
                    epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, l->timer_fd, &timer) < 0)
                        r = negative_errno();
        }
        if (r < 0) {
                client_free(l);
                return r;
        }
        *ret = l;
        return 0;
}

_public_ struct luvfio *luvfio_ref(struct luvfio *l)
{
        if (l)
                l->n_ref++;
        return l;
}

_public_ struct luvfio *luvfio_unref(struct luvfio *l)
{
        if (!l || --l->n_ref > 0)
                return NULL;
        return client_free(l);
}

_public_ int luvfio_set_handlers(struct luvfio *l, const struct luvfio_handlers *handlers, void *userdata)
{
        struct luvfio_handlers h = {};

        /* An older program has fewer handlers, a newer one than this library cannot be served. */
        if (handlers->size < offsetof(struct luvfio_handlers, attached) || handlers->size > sizeof(h))
                return luv_client_fail(l, -EINVAL,
                                       "machine '%s': handlers of %zu bytes, this library knows %zu",
                                       l->machine, handlers->size, sizeof(h));
        memcpy(&h, handlers, handlers->size);
        l->handlers = h;
        l->userdata = userdata;
        return 0;
}

_public_ int luvfio_set_socket(struct luvfio *l, const char *path)
{
        return replace_string(l, &l->socket, path);
}

_public_ int luvfio_set_vmm(struct luvfio *l, const char *vmm)
{
        return replace_string(l, &l->vmm, vmm);
}

_public_ int luvfio_set_timeout(struct luvfio *l, uint64_t usec)
{
        if (usec == 0)
                return luv_client_fail(l, -EINVAL, "machine '%s': a timeout of 0", l->machine);
        l->timeout_usec = usec;
        return 0;
}

_public_ const char *luvfio_get_secret(struct luvfio *l)
{
        return l->secret;
}

_public_ int luvfio_set_secret(struct luvfio *l, const char *secret)
{
        if (!luv_client_secret_is_valid(secret))
                return luv_client_fail(l, -EINVAL, "machine '%s': a secret is 32 hexadecimal digits",
                                       l->machine);
        return replace_string(l, &l->secret, secret);
}

_public_ int luvfio_get_state(struct luvfio *l)
{
        return l->registered ? (int) l->state : -ENODATA;
}

_public_ uint64_t luvfio_get_generation(struct luvfio *l)
{
        return l->generation;
}

_public_ int luvfio_is_attached(struct luvfio *l)
{
        return l->stage == EVENTS_ATTACHED;
}

_public_ int luvfio_get_fd(struct luvfio *l)
{
        return l->epoll_fd;
}

_public_ int luvfio_process(struct luvfio *l)
{
        if (l->processing)
                return luv_client_fail(l, -EBUSY, "machine '%s': luvfio_process() called from a callback",
                                       l->machine);
        /* A callback may drop the last reference of its owner. */
        luvfio_ref(l);
        l->processing = true;
        luv_client_events_process(l);
        l->processing = false;
        luvfio_unref(l);
        return 0;
}

static int event_dispatch(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
        /* sd-event would turn the source off at an error. */
        (void) luvfio_process(userdata);
        return 0;
}

_public_ int luvfio_attach_event(struct luvfio *l, struct sd_event *event, int64_t priority)
{
        sd_event_source *source = NULL;
        int r;

        if (l->source)
                return luv_client_fail(l, -EBUSY, "machine '%s': already attached to an event loop",
                                       l->machine);
        r = sd_event_add_io(event, &source, l->epoll_fd, EPOLLIN, event_dispatch, l);
        if (r >= 0)
                r = sd_event_source_set_priority(source, priority);
        if (r < 0) {
                sd_event_source_unref(source);
                return luv_client_fail(l, r, "machine '%s': event loop: %s", l->machine, strerror(-r));
        }
        (void) sd_event_source_set_description(source, "luvfio");
        l->source = source;
        return 0;
}

_public_ void luvfio_detach_event(struct luvfio *l)
{
        l->source = sd_event_source_disable_unref(l->source);
}

int luv_client_connect(struct luvfio *l, sd_varlink **ret)
{
        sd_varlink *link = NULL;
        int r;

        r = sd_varlink_connect_address(&link, l->socket);
        if (r < 0)
                return luv_client_fail(l, -ENOTCONN, "luvfiod cannot be reached at %s: %s", l->socket,
                                       strerror(-r));
        (void) sd_varlink_set_description(link, "luvfio");
        *ret = link;
        return 0;
}

int luv_client_register_parameters(struct luvfio *l, sd_json_variant **ret)
{
        return sd_json_buildo(ret, SD_JSON_BUILD_PAIR_STRING("name", l->machine),
                              SD_JSON_BUILD_PAIR_CONDITION(!!l->secret, "secret",
                                                           SD_JSON_BUILD_STRING(l->secret)),
                              SD_JSON_BUILD_PAIR_CONDITION(!!l->vmm, "vmm", SD_JSON_BUILD_STRING(l->vmm)));
}

static void calls_drop(struct luvfio *l)
{
        l->calls = sd_varlink_close_unref(l->calls);
}

/* One call on the connection for calls. *ret is valid until the next one. Whatever leaves the connection in
 * doubt closes it, so that neither an answer nor an fd can be taken for another call's. */
static int call_raw(struct luvfio *l, const char *what, const char *method, sd_json_variant *parameters,
                    sd_json_variant **ret)
{
        const char *error_id = NULL;
        sd_json_variant *reply = NULL;
        int r;

        (void) sd_varlink_set_relative_timeout(l->calls, l->timeout_usec);
        r = sd_varlink_call(l->calls, method, parameters, &reply, &error_id);
        if (r < 0) {
                calls_drop(l);
                if (r == -ETIME || r == -ETIMEDOUT)
                        return luv_client_fail(l, -ETIMEDOUT, "%s: luvfiod did not answer in time", what);
                if (r == -ENOMEM || r == -EBADMSG)
                        return luv_client_fail(l, r, "%s: %s", what, strerror(-r));
                return luv_client_fail(l, -ECONNRESET, "%s: the connection to luvfiod was lost (%s)", what,
                                       strerror(-r));
        }
        if (error_id)
                return luv_client_error(l, what, error_id, reply);
        *ret = reply;
        return 0;
}

/* The connection for calls: a new one says first who it is, since calls carry no secret. */
static int calls_open(struct luvfio *l)
{
        sd_json_variant *parameters = NULL, *reply = NULL;
        _cleanup_free_ char *what = NULL;
        int r;

        if (l->calls) {
                struct pollfd p = { .fd = sd_varlink_get_fd(l->calls), .events = POLLIN | POLLRDHUP };

                /* Between calls nothing comes but the end of the connection. */
                if (p.fd >= 0 && poll(&p, 1, 0) == 0)
                        return 0;
                calls_drop(l);
        }

        if (asprintf(&what, "Register machine '%s'", l->machine) < 0) {
                what = NULL;
                return luv_client_fail(l, -ENOMEM, "machine '%s': out of memory", l->machine);
        }
        r = luv_client_connect(l, &l->calls);
        if (r < 0)
                return r;
        if (sd_varlink_set_allow_fd_passing_input(l->calls, true) < 0 ||
            sd_varlink_set_allow_fd_passing_output(l->calls, true) < 0 ||
            luv_client_register_parameters(l, &parameters) < 0)
                r = luv_client_fail(l, -ENOMEM, "%s: out of memory", what);
        if (r >= 0)
                r = call_raw(l, what, CLIENT_INTERFACE ".Register", parameters, &reply);
        if (r >= 0) {
                r = luv_client_parse_registration(l, reply);
                if (r < 0)
                        luv_client_fail(l, r, "%s: the answer makes no sense", what);
        }
        sd_json_variant_unref(parameters);
        if (r < 0)
                calls_drop(l);
        return r;
}

/* A call about the machine, `arguments` added to its name (and unreffed). */
static int call(struct luvfio *l, const char *what, const char *method, sd_json_variant *arguments,
                sd_json_variant **ret)
{
        sd_json_variant *parameters = arguments, *reply;
        _cleanup_free_ char *full = NULL;
        int r;

        r = sd_json_variant_merge_objectbo(&parameters, SD_JSON_BUILD_PAIR_STRING("machine", l->machine));
        if (r >= 0 && asprintf(&full, CLIENT_INTERFACE ".%s", method) < 0) {
                full = NULL;
                r = -ENOMEM;
        }
        if (r < 0)
                luv_client_fail(l, r, "%s: %s", what, strerror(-r));
        else
                r = call_raw(l, what, full, parameters, ret ? ret : &reply);
        sd_json_variant_unref(parameters);
        return r;
}

/* Who connects again gets a new list of fds: a NAME out of the old one is gone then, so the caller copies
 * it. */
static int prepare_call(struct luvfio *l, char **ret_what, const char *method, const char *name)
{
        int r;

        if (!l->registered)
                return luv_client_fail(l, -ENOTCONN, "%s: machine '%s' is not registered", method,
                                       l->machine);
        if (asprintf(ret_what, "%s %s%s%smachine '%s'", method, name ? "'" : "", strempty(name),
                     name ? "' of " : "", l->machine) < 0) {
                *ret_what = NULL;
                return luv_client_fail(l, -ENOMEM, "%s: out of memory", method);
        }
        r = calls_open(l);
        /* What was wanted of the caller has not been asked for. */
        return r == -ECONNRESET ? -ENOTCONN : r;
}

_public_ int luvfio_register(struct luvfio *l)
{
        uint64_t begin = luvfio_now();
        int r;

        if (l->registered)
                return luv_client_fail(l, -EALREADY, "machine '%s' is registered", l->machine);
        calls_drop(l);
        /* The answer can take a while after the jump. A luvfiod that ends meanwhile is back soon. */
        while ((r = calls_open(l)) == -ECONNRESET && luvfio_now() - begin < l->timeout_usec)
                (void) usleep(REGISTER_RETRY_USEC);
        if (r < 0)
                return r == -ECONNRESET ? -ENOTCONN : r;
        r = luv_client_events_start(l);
        if (r < 0) {
                calls_drop(l);
                return r;
        }
        l->registered = true;
        return 0;
}

static int fds_put(struct luvfio *l, struct luvfio_fd *fd, const struct luvfio_fd **ret)
{
        struct luvfio_fd *fds, *found = (struct luvfio_fd *) luvfio_find_fd(l, fd->name);

        if (!found) {
                fds = reallocarray(l->fds, l->n_fds + 1, sizeof(*fds));
                if (!fds)
                        return -ENOMEM;
                l->fds = fds;
                found = &l->fds[l->n_fds++];
        } else
                luv_client_fd_done(found);
        *found = *fd;
        if (ret)
                *ret = found;
        return 0;
}

_public_ int luvfio_preserve(struct luvfio *l, const char *fd_name, enum luvfio_kind kind, int fd,
                             const struct luvfio_fd **ret_info)
{
        const char *kind_name = luvfio_kind_to_string(kind);
        sd_json_variant *arguments = NULL, *reply;
        _cleanup_free_ char *what = NULL, *name = strdup(fd_name);
        struct luvfio_fd info;
        int r;

        if (!name)
                return luv_client_fail(l, -ENOMEM, "Preserve: out of memory");
        if (!kind_name)
                return luv_client_fail(l, -EINVAL, "Preserve '%s' of machine '%s': no such kind: %d", name,
                                       l->machine, (int) kind);
        r = prepare_call(l, &what, "Preserve", name);
        if (r < 0)
                return r;
        r = sd_json_buildo(&arguments, SD_JSON_BUILD_PAIR_STRING("name", name),
                           SD_JSON_BUILD_PAIR_STRING("kind", kind_name),
                           SD_JSON_BUILD_PAIR_INTEGER("fileDescriptor", 0));
        if (r < 0)
                return luv_client_fail(l, r, "%s: the name is not UTF-8, or memory is short", what);
        r = sd_varlink_push_dup_fd(l->calls, fd);
        if (r != 0) {
                /* Anything but index 0 means that an fd of an earlier message is still waiting. */
                sd_json_variant_unref(arguments);
                calls_drop(l);
                return luv_client_fail(l, r < 0 ? r : -EBADMSG, "%s: fd %d: %s", what, fd,
                                       strerror(r < 0 ? -r : EBADMSG));
        }
        r = call(l, what, "Preserve", arguments, &reply);
        if (r < 0)
                return r;
        r = luv_client_parse_fd(sd_json_variant_by_key(reply, "fileDescriptor"), &info);
        if (r >= 0 && !streq(info.name, name)) {
                luv_client_fd_done(&info);
                r = -EBADMSG;
        }
        if (r >= 0) {
                r = fds_put(l, &info, ret_info);
                if (r < 0)
                        luv_client_fd_done(&info);
        }
        if (r < 0)
                return luv_client_fail(l, r, "%s: the answer: %s", what, strerror(-r));
        return 0;
}

_public_ const struct luvfio_fd *luvfio_list_fds(struct luvfio *l, size_t index)
{
        return index < l->n_fds ? &l->fds[index] : NULL;
}

_public_ const struct luvfio_fd *luvfio_find_fd(struct luvfio *l, const char *name)
{
        for (size_t i = 0; i < l->n_fds; i++)
                if (streq(l->fds[i].name, name))
                        return &l->fds[i];
        return NULL;
}

_public_ int luvfio_set_blockers(struct luvfio *l, const struct luvfio_blocker *blockers, size_t n)
{
        sd_json_variant *arguments = NULL, *list = NULL;
        _cleanup_free_ char *what = NULL;
        int r;

        r = prepare_call(l, &what, "SetBlockers", NULL);
        if (r < 0)
                return r;
        r = sd_json_variant_new_array(&list, NULL, 0);
        for (size_t i = 0; i < n && r >= 0; i++)
                r = sd_json_variant_append_arraybo(
                                &list, SD_JSON_BUILD_PAIR_STRING("message", blockers[i].message),
                                SD_JSON_BUILD_PAIR_CONDITION(blockers[i].remedy != NULL, "remedy",
                                                             SD_JSON_BUILD_STRING(blockers[i].remedy)));
        if (r >= 0)
                r = sd_json_buildo(&arguments, SD_JSON_BUILD_PAIR("blockers", SD_JSON_BUILD_VARIANT(list)));
        sd_json_variant_unref(list);
        if (r < 0)
                return luv_client_fail(l, r, "%s: a text is not UTF-8, or memory is short", what);
        return call(l, what, "SetBlockers", arguments, NULL);
}

/* An answer without arguments, or with one time. */
static int answer(struct luvfio *l, const char *method, const char *time_name, uint64_t usec)
{
        sd_json_variant *arguments = NULL;
        _cleanup_free_ char *what = NULL;
        int r;

        r = prepare_call(l, &what, method, NULL);
        if (r < 0)
                return r;
        if (time_name) {
                r = sd_json_buildo(&arguments,
                                   SD_JSON_BUILD_PAIR(time_name,
                                                      SD_JSON_BUILD_UNSIGNED(usec ? usec : luvfio_now())));
                if (r < 0)
                        return luv_client_fail(l, r, "%s: %s", what, strerror(-r));
        }
        return call(l, what, method, arguments, NULL);
}

_public_ int luvfio_prepared(struct luvfio *l)
{
        int r = answer(l, "Prepared", NULL, 0);

        if (r >= 0)
                l->state = LUVFIO_STATE_PREPARED;
        return r;
}

_public_ int luvfio_quiesced(struct luvfio *l, uint64_t vcpus_stopped_usec)
{
        int r = answer(l, "Quiesced", "vcpusStoppedUSec",
                       vcpus_stopped_usec ? vcpus_stopped_usec : luvfio_now());

        if (r >= 0) {
                l->state = LUVFIO_STATE_QUIESCED;
                l->promise = PROMISE_QUIESCED;
        }
        return r;
}

_public_ int luvfio_committed(struct luvfio *l)
{
        _cleanup_free_ char *what = NULL;
        int r;

        if (l->promise != PROMISE_QUIESCED && l->promise != PROMISE_COMMITTED)
                return luv_client_fail(l, -EPROTO, "Committed machine '%s': no update waits for it",
                                       l->machine);
        r = prepare_call(l, &what, "Committed", NULL);
        if (r < 0)
                return r;

        /* From the moment the message may be on its way: if the connection breaks now nobody here can know
         * whether luvfiod has read it and jumps. Only an answer that says no takes it back. */
        l->promise = PROMISE_COMMITTED;
        r = call(l, what, "Committed", NULL, NULL);
        if (r >= 0)
                l->state = LUVFIO_STATE_COMMITTED;
        else if (l->calls && l->promise == PROMISE_COMMITTED)
                l->promise = PROMISE_QUIESCED;
        return r;
}

/* A memfd's type and size are compared with what luvfiod says it is. Whether a device is the right one its
 * first ioctl tells: in a simulated update it is a memfd too. */
static int retrieved_verify(int fd, const struct luvfio_fd *info)
{
        struct stat st;

        if (info->kind != LUVFIO_KIND_MEMFD && info->kind != LUVFIO_KIND_STATE)
                return 0;
        if (fstat(fd, &st) < 0)
                return negative_errno();
        return S_ISREG(st.st_mode) && (uint64_t) st.st_size == info->size ? 0 : -EBADMSG;
}

_public_ int luvfio_retrieve(struct luvfio *l, const char *fd_name, const struct luvfio_fd **ret_info)
{
        sd_json_variant *arguments = NULL, *reply;
        _cleanup_close_ int fd = -EBADF, extra = -EBADF;
        _cleanup_free_ char *what = NULL, *name = strdup(fd_name);
        struct luvfio_fd info;
        int r;

        if (!name)
                return luv_client_fail(l, -ENOMEM, "Retrieve: out of memory");
        r = prepare_call(l, &what, "Retrieve", name);
        if (r < 0)
                return r;
        r = sd_json_buildo(&arguments, SD_JSON_BUILD_PAIR_STRING("name", name));
        if (r < 0)
                return luv_client_fail(l, r, "%s: %s", what, strerror(-r));
        r = call(l, what, "Retrieve", arguments, &reply);
        if (r < 0)
                return r;

        fd = sd_varlink_take_fd(l->calls, 0);
        extra = sd_varlink_take_fd(l->calls, 1);
        r = luv_client_parse_fd(sd_json_variant_by_key(reply, "description"), &info);
        if (r >= 0) {
                if (fd < 0 || extra >= 0 || !streq(info.name, name))
                        r = -EBADMSG;
                else
                        r = retrieved_verify(fd, &info);
                if (r >= 0)
                        r = fds_put(l, &info, ret_info);
                if (r < 0)
                        luv_client_fd_done(&info);
        }
        if (r < 0)
                return luv_client_fail(l, r, "%s: the answer, or the file descriptor with it: %s", what,
                                       strerror(-r));
        if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
                return luv_client_fail(l, negative_errno(), "%s: %m", what);
        return TAKE_FD(fd);
}

_public_ int luvfio_resumed(struct luvfio *l, uint64_t vcpus_running_usec)
{
        int r;

        if (l->state == LUVFIO_STATE_RESUMING)
                l->promise = PROMISE_RESUMED;
        else if (l->promise != PROMISE_RESUMED)
                l->promise = PROMISE_NONE;
        if (l->registered && l->state != LUVFIO_STATE_RESUMING && l->state != LUVFIO_STATE_ABORTING)
                return 0;
        r = answer(l, "Resumed", "vcpusRunningUSec", vcpus_running_usec);
        if (r >= 0)
                l->state = LUVFIO_STATE_RUNNING;
        return r;
}

_public_ int luvfio_withdraw(struct luvfio *l)
{
        int r = answer(l, "Withdraw", NULL, 0);

        if (r < 0)
                return r;
        luv_client_events_stop(l);
        calls_drop(l);
        for (size_t i = 0; i < l->n_fds; i++)
                luv_client_fd_done(&l->fds[i]);
        l->n_fds = 0;
        free(l->secret);
        l->secret = NULL;
        l->registered = false;
        return 0;
}
