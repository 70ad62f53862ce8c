/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* What the plugin host takes for a plugin, and what it makes of operations that break the contract. */

#include <check.h>
#include <fcntl.h>

#include "plugin-host/host-plugin.h"
#include "util/io.h"
#include "util/string-util.h"
#include "util/time-util.h"

/* How the operations of the plugin under test behave. */
static int result;
static enum luvfio_promise promised;
static const char *planned;
static bool endless;

static int op_match(const struct luvfio_host *host, struct luvfio_device *device,
                    enum luvfio_promise *promise)
{
        *promise = promised;
        return result;
}

static int op(const struct luvfio_host *host, struct luvfio_device *device)
{
        return result;
}

static int op_preflight(const struct luvfio_host *host, struct luvfio_device *device)
{
        ck_assert_int_eq(host->add_finding(device, LUVFIO_NOTE, NULL, NULL, "x"), -EINVAL);
        ck_assert_int_eq(host->add_finding(device, (enum luvfio_severity) 3, "x", NULL, "x"), -EINVAL);
        ck_assert_int_eq(host->add_finding(device, LUVFIO_WARNING, "a", NULL, "b %i", 1), 0);
        ck_assert_int_eq(host->add_finding(device, LUVFIO_BLOCKER, "c", "d\"\x7f", "e"), 0);
        return result;
}

static int op_plan(const struct luvfio_host *host, struct luvfio_device *device, char *plan, size_t size)
{
        ck_assert_uint_eq(size, LUVFIO_PLAN_SIZE);
        if (endless)
                memset(plan, 'x', size);
        else
                strcpy(plan, planned);
        return result;
}

static int op_with_plan(const struct luvfio_host *host, struct luvfio_device *device, const char *plan)
{
        ck_assert_str_eq(plan, "the plan");
        return host->set_reason(device, result, "said %s", host->address(device));
}

static const struct luvfio_plugin_ops ops = {
        .size = sizeof(ops),
        .match = op_match,
        .preflight = op_preflight,
        .quiesced = op,
        .plan = op_plan,
        .rebind = op_with_plan,
        .verify = op_with_plan,
        .recover = op_with_plan,
};

static const struct luvfio_plugin good = {
        .size = sizeof(good),
        .abi = LUVFIO_PLUGIN_ABI,
        .name = "good",
        .ops = &ops,
};

static void refused(const struct luvfio_plugin *p, const char *word)
{
        _cleanup_free_ char *reason = NULL;

        ck_assert_int_eq(luv_host_plugin_check(p, "good", &reason), -ELIBBAD);
        ck_assert_msg(strstr(reason, word) != NULL, "%s", reason);
}

START_TEST(handshake)
{
        struct luvfio_plugin p = good;
        struct luvfio_plugin_ops o = ops;

        ck_assert_int_eq(luv_host_plugin_check(&p, "good", NULL), 0);
        p.capabilities = LUVFIO_CAPABILITY_NO_DEVICE;
        ck_assert_int_eq(luv_host_plugin_check(&p, "good", NULL), 0);
        /* of a later header: longer */
        p.size += 8;
        p.ops = &o;
        o.size += 64;
        ck_assert_int_eq(luv_host_plugin_check(&p, "good", NULL), 0);
        o.size = sizeof(o) - 1;
        refused(&p, "operations");
        o.size = sizeof(o);
        o.recover = NULL;
        refused(&p, "an operation is missing");
        p.ops = NULL;
        refused(&p, "operations");
        p = good;
        p.size -= 1;
        refused(&p, "bytes");
        p.size = 0;
        refused(&p, "0 bytes");
        p = good;
        p.abi = LUVFIO_PLUGIN_ABI + 1;
        refused(&p, "ABI 2");
        p = good;
        p.name = "other";
        refused(&p, "other, not good");
        p.name = NULL;
        refused(&p, "no name");
        p.name = "\x1b[2J";
        refused(&p, "no name");
        p = good;
        p.capabilities = UINT64_C(1) << 63;
        refused(&p, "0x8000000000000000");
}
END_TEST

START_TEST(names)
{
        ck_assert(luv_plugin_name_valid("null"));
        ck_assert(luv_plugin_name_valid("vfio-pci2"));
        ck_assert(luv_plugin_name_valid("abcdefghijklmnopqrstuvwxyz012345"));
        ck_assert(!luv_plugin_name_valid("abcdefghijklmnopqrstuvwxyz0123456"));
        ck_assert(!luv_plugin_name_valid(NULL));
        ck_assert(!luv_plugin_name_valid(""));
        ck_assert(!luv_plugin_name_valid("2x"));
        ck_assert(!luv_plugin_name_valid("../null"));
        ck_assert(!luv_plugin_name_valid("Null"));
        ck_assert(!luv_plugin_name_valid("nul l"));
        for (HostOp o = 0; o < _HOST_OP_MAX; o++)
                ck_assert_int_eq(luv_host_op_from_string(luv_host_op_to_string(o)), o);
        ck_assert_ptr_null(luv_host_op_to_string(_HOST_OP_MAX));
        ck_assert_int_eq(luv_host_op_from_string("matches"), -EINVAL);
}
END_TEST

START_TEST(loading)
{
        static const char *const bad[][2] = {
                { "not-there", "not-there" },
                { "text", "text" },
                { "../null", "no plugin name" },
                { "misnamed", "it calls itself null, not misnamed" },
        };
        char folder[] = "/tmp/luvfio-test-plugin-host.XXXXXX";
        _cleanup_free_ char *text = NULL, *misnamed = NULL, *null = NULL, *command = NULL;
        const struct luvfio_plugin *p;

        ck_assert_ptr_nonnull(mkdtemp(folder));
        text = luv_strf("%s/text.so", folder);
        misnamed = luv_strf("%s/misnamed.so", folder);
        null = luv_strf("%s/null.so", getenv("LUVFIO_PLUGIN_DIR"));
        command = luv_strf("rm -rf '%s'", folder);
        ck_assert_int_eq(luv_write_file_atomic(AT_FDCWD, text, "no library", 10, 0700), 0);
        ck_assert_int_eq(symlink(null, misnamed), 0);

        for (size_t i = 0; i < ELEMENTSOF(bad); i++) {
                _cleanup_free_ char *reason = NULL;

                p = NULL;
                ck_assert_int_eq(luv_host_plugin_load(folder, bad[i][0], &p, &reason), -ELIBBAD);
                ck_assert_msg(strstr(reason, bad[i][1]) != NULL, "%s", reason);
                ck_assert_ptr_null(p);
        }
        ck_assert_int_eq(luv_host_plugin_load(getenv("LUVFIO_PLUGIN_DIR"), "null", &p, NULL), 0);
        ck_assert_str_eq(p->name, "null");
        ck_assert_int_eq(system(command), 0);
}
END_TEST

static void check_answer(HostOp o, const char *expected)
{
        const HostOptions options = { .plugin = "good", .sysfs = "/nowhere" };
        _cleanup_(luv_host_device_freep) struct luvfio_device *d = NULL;
        _cleanup_free_ char *answer = NULL;

        ck_assert_int_eq(luv_host_device_new(&options, "0000:AB:00.0", UINT64_MAX, luv_now_usec(), &d), 0);
        ck_assert_int_eq(luv_host_plugin_run(&good, o, d, "the plan", &answer), 0);
        ck_assert_str_eq(answer, expected);
}

START_TEST(answers)
{
        result = 0;
        planned = "a \"plan\"";
        endless = false;
        check_answer(HOST_OP_MATCH, "{\"ok\":{\"score\":0}}");
        check_answer(HOST_OP_PREFLIGHT,
                     "{\"ok\":{\"findings\":[{\"id\":\"a\",\"severity\":\"warning\",\"message\":\"b 1\"},"
                     "{\"id\":\"c\",\"severity\":\"blocker\",\"message\":\"e\",\"remedy\":\"d\\\"?\"}]}}");
        check_answer(HOST_OP_QUIESCED, "{\"ok\":{}}");
        check_answer(HOST_OP_PLAN, "{\"ok\":{\"plan\":\"a \\\"plan\\\"\"}}");
        check_answer(HOST_OP_VERIFY, "{\"ok\":{}}");
        planned = "";
        check_answer(HOST_OP_PLAN, "{\"ok\":{\"plan\":\"\"}}");

        result = 1000;
        promised = LUVFIO_PROMISE_LATCHED;
        check_answer(HOST_OP_MATCH, "{\"ok\":{\"score\":1000,\"promise\":\"latched\"}}");

        result = -EBUSY;
        check_answer(HOST_OP_MATCH, "{\"failed\":\"Device or resource busy\"}");
        check_answer(HOST_OP_REBIND, "{\"failed\":\"said 0000:ab:00.0\"}");
        check_answer(HOST_OP_RECOVER, "{\"failed\":\"said 0000:ab:00.0\"}");
}
END_TEST

START_TEST(broken_contract)
{
        result = 1001;
        promised = LUVFIO_PROMISE_RESET;
        check_answer(HOST_OP_MATCH, "{\"failed\":\"its score 1001 is above 1000\"}");
        check_answer(HOST_OP_QUIESCED, "{\"failed\":\"it returned 1001, which means nothing\"}");
        result = 1;
        promised = 0;
        check_answer(HOST_OP_MATCH, "{\"failed\":\"it promises 0, which is nothing\"}");
        promised = (enum luvfio_promise) - 1;
        check_answer(HOST_OP_MATCH, "{\"failed\":\"it promises -1, which is nothing\"}");
        result = 0;
        endless = true;
        check_answer(HOST_OP_PLAN, "{\"failed\":\"its plan has no end\"}");
        endless = false;
        planned = "\xff";
        check_answer(HOST_OP_PLAN, "{\"failed\":\"its plan is not text\"}");
}
END_TEST

int main(void)
{
        Suite *s = suite_create("plugin-host");
        TCase *t = tcase_create("plugin-host");
        SRunner *runner;
        int failed;

        tcase_add_test(t, handshake);
        tcase_add_test(t, names);
        tcase_add_test(t, loading);
        tcase_add_test(t, answers);
        tcase_add_test(t, broken_contract);
        suite_add_tcase(s, t);
        runner = srunner_create(s);
        srunner_set_tap(runner, "-");
        srunner_run_all(runner, CK_SILENT);
        failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
