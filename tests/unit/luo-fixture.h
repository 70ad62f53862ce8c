/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <check.h>
#include <sys/mman.h>
#include <systemd/sd-event.h>

#include "luo/luo.h"
#include "util/time-util.h"

/* What tests of LUO share: calls whose end is waited for. */

typedef struct Waited {
        bool over;
        int error, fd;
        LuoSession *session;
} Waited;

#define WAITED_INIT { .fd = -EBADF }
#define TEST_DEADLINE (luv_now_usec() + 20 * USEC_PER_SEC)

static inline void waited_done(int error, void *userdata)
{
        Waited *w = userdata;

        ck_assert(!w->over);
        w->over = true;
        w->error = error;
}

static inline void waited_fd(int error, int fd, void *userdata)
{
        Waited *w = userdata;

        w->fd = fd;
        waited_done(error, userdata);
}

static inline void waited_session(int error, LuoSession *session, void *userdata)
{
        Waited *w = userdata;

        w->session = session;
        waited_done(error, userdata);
}

static inline int wait_for(sd_event *event, Waited *w)
{
        /* Never from within the call. */
        while (!w->over)
                ck_assert_int_ge(sd_event_run(event, 20 * USEC_PER_SEC), 0);
        return w->error;
}

/* Lets the event loop do what it can at once. */
static inline void settle(sd_event *event)
{
        while (sd_event_run(event, 0) > 0)
                ;
}

static inline int do_create(sd_event *event, Luo *l, const char *name, LuoSession **ret)
{
        Waited w = WAITED_INIT;

        ck_assert_int_eq(luv_luo_session_create(l, name, TEST_DEADLINE, waited_session, &w, NULL), 0);
        ck_assert(!w.over);
        *ret = wait_for(event, &w) < 0 ? NULL : w.session;
        ck_assert(w.error == 0 || !w.session);
        return w.error;
}

static inline int do_retrieve_session(sd_event *event, Luo *l, const char *name, LuoSession **ret)
{
        Waited w = WAITED_INIT;

        ck_assert_int_eq(luv_luo_session_retrieve(l, name, TEST_DEADLINE, waited_session, &w, NULL), 0);
        *ret = wait_for(event, &w) < 0 ? NULL : w.session;
        ck_assert(w.error == 0 || !w.session);
        return w.error;
}

static inline int do_preserve(sd_event *event, LuoSession *s, int fd, uint64_t token)
{
        Waited w = WAITED_INIT;

        ck_assert_int_eq(luv_luo_session_preserve(s, fd, token, TEST_DEADLINE, waited_done, &w, NULL), 0);
        ck_assert(!w.over);
        return wait_for(event, &w);
}

/* The fd, or -errno. */
static inline int do_retrieve(sd_event *event, LuoSession *s, uint64_t token)
{
        Waited w = WAITED_INIT;

        ck_assert_int_eq(luv_luo_session_retrieve_fd(s, token, TEST_DEADLINE, waited_fd, &w, NULL), 0);
        return wait_for(event, &w) < 0 ? w.error : w.fd;
}

static inline int do_finish(sd_event *event, LuoSession *s)
{
        Waited w = WAITED_INIT;

        ck_assert_int_eq(luv_luo_session_finish(s, TEST_DEADLINE, waited_done, &w, NULL), 0);
        return wait_for(event, &w);
}

static inline int make_memfd(const char *name, const char *content)
{
        int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

        ck_assert_int_ge(fd, 0);
        ck_assert_int_eq(write(fd, content, strlen(content)), (ssize_t) strlen(content));
        return fd;
}

static inline void check_content(int fd, const char *content)
{
        char buffer[256] = "";

        ck_assert_int_eq(pread(fd, buffer, sizeof(buffer) - 1, 0), (ssize_t) strlen(content));
        ck_assert_str_eq(buffer, content);
}
