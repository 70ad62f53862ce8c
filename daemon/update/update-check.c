/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "update/update-private.h"
#include "util/string-util.h"
#include "util/time-util.h"

/* Checks, of an update that begins or goes on, and of nobody's update. */

struct UpdateCheck {
        Update *update;
        UpdateCheckDone done;
        void *userdata;
        Preflight *preflight;
        int kernel_fd, initrd_fd;
        char *cmdline;
        char **sacrifice;
};

static PreflightConfig check_config(Update *u)
{
        return (PreflightConfig) {
                .event = u->config.event,
                .luo = u->config.luo,
                .store = u->config.store,
                .plugins = u->config.plugins,
                .units = u->units,
                .machines = u->config.machines,
                .simulated = u->config.simulated,
                .state_dir = u->config.state_dir,
                .kernel_staged = u->state >= UPDATE_STAGING && u->state < UPDATE_RESTORING,
                .kernel_fd = -EBADF,
                .initrd_fd = -EBADF,
                .deadline = luv_now_usec() + CHECK_DEADLINE_USEC,
        };
}

/* With what only we know. */
void luv_update_judge(Update *u, PreflightFacts *facts, char *const *sacrifice, Findings *findings)
{
        if (u->callbacks.inhibitors)
                u->callbacks.inhibitors(facts, u->userdata);
        if (luv_free_and_strdup(&facts->lost, u->lost) < 0)
                findings->incomplete = true;
        luv_preflight_judge(facts, findings);
        luv_findings_sacrifice(findings, sacrifice);
        luv_findings_sort(findings);
}

int luv_update_start_check(Update *u, PreflightDone done)
{
        PreflightConfig config = check_config(u);

        config.kernel_fd = u->kernel_fd;
        config.initrd_fd = u->initrd_fd;
        config.cmdline = u->cmdline;
        return luv_preflight_start(&config, done, u, &u->preflight);
}

static void on_check_done(int error, PreflightFacts *facts, void *userdata)
{
        UpdateCheck *c = userdata;
        Findings findings = {};

        if (error >= 0) {
                luv_update_judge(c->update, facts, c->sacrifice, &findings);
        }
        /* May free C. */
        c->done(error, &findings, c->userdata);
        luv_findings_done(&findings);
}

int luv_update_check(Update *u, UpdateRequest *request, UpdateCheckDone done, void *userdata,
                     UpdateCheck **ret)
{
        _cleanup_(luv_update_check_freep) UpdateCheck *c = NULL;
        PreflightConfig config = check_config(u);
        int r;

        c = calloc(1, sizeof(UpdateCheck));
        if (!c)
                return -ENOMEM;
        c->update = u;
        c->done = done;
        c->userdata = userdata;
        c->kernel_fd = TAKE_FD(request->kernel_fd);
        c->initrd_fd = TAKE_FD(request->initrd_fd);
        if (luv_free_and_strdup(&c->cmdline, request->cmdline) < 0 ||
            luv_strv_copy(request->sacrifice, &c->sacrifice) < 0)
                return -ENOMEM;
        config.kernel_fd = c->kernel_fd;
        config.initrd_fd = c->initrd_fd;
        config.cmdline = c->cmdline;
        /* A kernel that is asked about is looked at, whatever is staged. */
        if (c->kernel_fd >= 0)
                config.kernel_staged = false;
        r = luv_preflight_start(&config, on_check_done, c, &c->preflight);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(c);
        return 0;
}

UpdateCheck *luv_update_check_free(UpdateCheck *c)
{
        if (!c)
                return NULL;
        luv_preflight_free(c->preflight);
        safe_close(c->kernel_fd);
        safe_close(c->initrd_fd);
        free(c->cmdline);
        luv_strv_free(c->sacrifice);
        free(c);
        return NULL;
}
