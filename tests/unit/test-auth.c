/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <check.h>
#include <sys/pidfd.h>

#include "varlink/auth.h"

static void never(AuthResult result, void *userdata)
{
        ck_abort_msg("it was to be decided at once");
}

static AuthResult ask(Auth *a, uid_t uid)
{
        MachineOwner peer = { .uid = uid, .pid = getpid(), .pidfd = pidfd_open(getpid(), 0) };
        AuthResult result = AUTH_INTERACTIVE;
        AuthCall *call = NULL;

        ck_assert_int_eq(luv_auth_check(a, &peer, "org.luvfio.host.update", true, &result, never, NULL,
                                        &call),
                         1);
        ck_assert_ptr_null(call);
        luv_machine_owner_done(&peer);
        return result;
}

START_TEST(root)
{
        Auth *a;

        ck_assert_int_eq(luv_auth_new(NULL, false, &a), 0);
        ck_assert_int_eq(ask(a, 0), AUTH_ALLOWED);
        luv_auth_free(a);
}
END_TEST

START_TEST(simulated)
{
        Auth *a;

        ck_assert_int_eq(luv_auth_new(NULL, true, &a), 0);
        ck_assert_int_eq(ask(a, 0), AUTH_ALLOWED);
        ck_assert_int_eq(ask(a, getuid()), AUTH_ALLOWED);
        ck_assert_int_eq(ask(a, getuid() + 1), AUTH_DENIED);
        luv_auth_free(a);
}
END_TEST

/* No message bus, so nobody who could say yes. */
START_TEST(no_bus)
{
        Auth *a;

        ck_assert_int_eq(setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent", 1), 0);
        ck_assert_int_eq(luv_auth_new(NULL, false, &a), 0);
        ck_assert_int_eq(ask(a, 4711), AUTH_DENIED);
        luv_auth_free(a);
}
END_TEST

int main(void)
{
        Suite *s = suite_create("auth");
        TCase *c = tcase_create("auth");
        SRunner *r;

        tcase_add_test(c, root);
        tcase_add_test(c, simulated);
        tcase_add_test(c, no_bus);
        suite_add_tcase(s, c);
        r = srunner_create(s);
        srunner_set_tap(r, "-");
        srunner_run_all(r, CK_SILENT);
        srunner_free(r);
        return 0;
}
