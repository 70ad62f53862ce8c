/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-event.h>

#include "machine/machine.h"

/*
 * Who may change the host's state: root; else whom polkit lets, if there is one. Simulated: whoever runs the
 * daemon.
 */

typedef enum AuthResult {
        AUTH_ALLOWED,
        AUTH_DENIED,
        AUTH_INTERACTIVE, /* polkit would ask, and was not allowed to */
} AuthResult;

typedef struct Auth Auth;
typedef struct AuthCall AuthCall;
typedef void (*AuthDone)(AuthResult result, void *userdata);

int luv_auth_new(sd_event *event, bool simulated, Auth **ret);
Auth *luv_auth_free(Auth *a);
DEFINE_CLEANUP(Auth *, luv_auth_free);

/*
 * Positive: decided, *ret_result says how. 0: DONE follows, unless *ret_call is freed before. Negative: an
 * error, to be taken for a no.
 */
int luv_auth_check(Auth *a, const MachineOwner *peer, const char *action, bool interactive,
                   AuthResult *ret_result, AuthDone done, void *userdata, AuthCall **ret_call);
AuthCall *luv_auth_call_free(AuthCall *c);
DEFINE_CLEANUP(AuthCall *, luv_auth_call_free);
