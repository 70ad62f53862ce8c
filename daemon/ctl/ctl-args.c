/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <getopt.h>

#include "ctl/ctl-args.h"
#include "util/string-util.h"
#include "varlink/idl.h"

static const char *const verb_table[_VERB_MAX] = {
        [VERB_STATUS] = "status",   [VERB_CHECK] = "check",     [VERB_STAGE] = "stage",
        [VERB_UPDATE] = "update",   [VERB_ABORT] = "abort",     [VERB_MACHINES] = "machines",
        [VERB_DEVICES] = "devices", [VERB_MONITOR] = "monitor", [VERB_INHIBIT] = "inhibit",
        [VERB_HISTORY] = "history", [VERB_ANALYZE] = "analyze", [VERB_DISCARD] = "discard",
        [VERB_HELP] = "help",       [VERB_VERSION] = "version",
};
DEFINE_STRING_TABLE(verb, Verb);

static const char *const json_mode_table[_JSON_MODE_MAX] = {
        [JSON_MODE_OFF] = "off",
        [JSON_MODE_SHORT] = "short",
        [JSON_MODE_PRETTY] = "pretty",
        [JSON_MODE_SEQ] = "seq",
};
DEFINE_STRING_TABLE(json_mode, JsonMode);

enum {
        OPTION_VERSION = 0x100,
        OPTION_JSON,
        OPTION_SOCKET,
        OPTION_NO_ASK_PASSWORD,
        /* Those from here on belong to some verbs only. */
        _OPTION_VERB_FIRST,
        OPTION_INITRD = _OPTION_VERB_FIRST,
        OPTION_CMDLINE,
        OPTION_REUSE_CMDLINE,
        OPTION_DRY_RUN,
        OPTION_DEADLINE,
        OPTION_SACRIFICE,
        OPTION_FALLBACK,
        OPTION_WHO,
        OPTION_WHY,
        OPTION_LINES,
        OPTION_SVG,
        _OPTION_MAX,
};

static const struct option long_options[] = {
        { "help", no_argument, NULL, 'h' },
        { "version", no_argument, NULL, OPTION_VERSION },
        { "json", optional_argument, NULL, OPTION_JSON },
        { "socket", required_argument, NULL, OPTION_SOCKET },
        { "no-ask-password", no_argument, NULL, OPTION_NO_ASK_PASSWORD },
        { "initrd", required_argument, NULL, OPTION_INITRD },
        { "cmdline", required_argument, NULL, OPTION_CMDLINE },
        { "reuse-cmdline", no_argument, NULL, OPTION_REUSE_CMDLINE },
        { "dry-run", no_argument, NULL, OPTION_DRY_RUN },
        { "deadline", required_argument, NULL, OPTION_DEADLINE },
        { "sacrifice", required_argument, NULL, OPTION_SACRIFICE },
        { "fallback", required_argument, NULL, OPTION_FALLBACK },
        { "who", required_argument, NULL, OPTION_WHO },
        { "why", required_argument, NULL, OPTION_WHY },
        { "lines", required_argument, NULL, OPTION_LINES },
        { "svg", required_argument, NULL, OPTION_SVG },
        {},
};

static const char *option_name(int value)
{
        for (const struct option *o = long_options; o->name; o++)
                if (o->val == value)
                        return o->name;
        return "?";
}

#define BIT(option) (1u << ((option) - _OPTION_VERB_FIRST))
#define KERNEL_BITS                                                                                         \
        (BIT(OPTION_INITRD) | BIT(OPTION_CMDLINE) | BIT(OPTION_REUSE_CMDLINE) | BIT(OPTION_SACRIFICE))
#define UPDATE_BITS (KERNEL_BITS | BIT(OPTION_DRY_RUN) | BIT(OPTION_DEADLINE) | BIT(OPTION_FALLBACK))
static_assert(_OPTION_MAX - _OPTION_VERB_FIRST <= 32, "options do not fit a mask");

/* What a verb takes: positional arguments, options. */
static const struct {
        unsigned min, max, options;
        const char *missing;
} grammar[_VERB_MAX] = {
        [VERB_CHECK] = { 0, 1, KERNEL_BITS, NULL },
        [VERB_STAGE] = { 0, 1, KERNEL_BITS, NULL },
        [VERB_UPDATE] = { 0, 1, UPDATE_BITS, NULL },
        [VERB_INHIBIT] = { 0, UINT32_MAX, BIT(OPTION_WHO) | BIT(OPTION_WHY), NULL },
        [VERB_HISTORY] = { 0, 0, BIT(OPTION_LINES), NULL },
        [VERB_ANALYZE] = { 0, 1, BIT(OPTION_SVG), NULL },
        [VERB_DISCARD] = { 1, 1, 0, "the machine to give up" },
};

static int invalid(char **ret_reason, const char *what, const char *value, const char *wanted)
{
        return luv_reason(ret_reason, -EINVAL, "%s is '%s'; it must be %s.", what, value, wanted);
}

static int parse_option(Options *o, int option, const char *value, bool json_terminal, char **ret_reason)
{
        int r;

        switch (option) {
        case OPTION_JSON:
                if (!value)
                        o->json = json_terminal ? JSON_MODE_PRETTY : JSON_MODE_SHORT;
                else if ((int) (o->json = json_mode_from_string(value)) < 0)
                        return invalid(ret_reason, "--json", value, "short, pretty, seq or off");
                return 0;
        case OPTION_SOCKET:
                if (*value == '\0')
                        return luv_reason(ret_reason, -EINVAL, "--socket is empty.");
                o->socket = value;
                return 0;
        case OPTION_NO_ASK_PASSWORD:
                o->ask_password = false;
                return 0;
        case OPTION_INITRD:
                o->initrd = value;
                return 0;
        case OPTION_CMDLINE:
                o->command_line = value;
                return 0;
        case OPTION_DRY_RUN:
                o->dry_run = true;
                return 0;
        case OPTION_DEADLINE:
                r = luv_parse_timespan(value, &o->deadline_usec);
                if (r < 0 || o->deadline_usec == 0)
                        return invalid(ret_reason, "--deadline", value,
                                       "a time above 0, as 10, 10s or 500ms");
                return 0;
        case OPTION_SACRIFICE:
                if (!luv_machine_name_valid(value))
                        return invalid(ret_reason, "--sacrifice", value, "the name of a machine");
                if (luv_strv_contains(o->sacrifice, value))
                        return 0;
                r = luv_strv_extend(&o->sacrifice, value);
                return r < 0 ? luv_reason(ret_reason, r, "Out of memory.") : 0;
        case OPTION_FALLBACK:
                if (!streq(value, "none") && !streq(value, "cold"))
                        return invalid(ret_reason, "--fallback", value, "none or cold");
                o->fallback = value;
                return 0;
        case OPTION_WHO:
                o->who = value;
                return 0;
        case OPTION_WHY:
                o->why = value;
                return 0;
        case OPTION_LINES:
                r = luv_parse_u64(value, &o->lines);
                if (r < 0 || o->lines == 0 || o->lines > INT32_MAX)
                        return invalid(ret_reason, "--lines", value, "a number above 0");
                return 0;
        case OPTION_SVG:
                if (*value == '\0')
                        return luv_reason(ret_reason, -EINVAL,
                                          "--svg is empty; it must be a file, or - for stdout.");
                o->svg = value;
                return 0;
        default:
                return 0; /* --reuse-cmdline says what is so anyhow */
        }
}

int ctl_parse_arguments(int argc, char *argv[], bool json_terminal, Options *ret, char **ret_reason)
{
        _cleanup_(ctl_options_done) Options o = {
                .verb = _VERB_INVALID,
                .socket = LUVFIO_HOST_SOCKET,
                .ask_password = true,
        };
        uint32_t given = 0;
        unsigned n = 0;
        int r;

        *ret_reason = NULL;
        optind = 0;
        opterr = 0;

        for (;;) {
                /* "-": arguments come in their order, so that inhibit's command keeps its own options. */
                int c = getopt_long(argc, argv, "-:hj", long_options, NULL);

                if (c == -1)
                        break;
                if (c == 'j')
                        c = OPTION_JSON;

                if (c == 'h') {
                        o.verb = VERB_HELP;
                        *ret = o;
                        o = (Options) {};
                        return 0;
                }
                if (c == OPTION_VERSION) {
                        o.verb = VERB_VERSION;
                        *ret = o;
                        o = (Options) {};
                        return 0;
                }
                if (c == '?') {
                        if (optopt > 0 && optopt < 0x100)
                                return luv_reason(ret_reason, -EINVAL, "There is no option -%c.", optopt);
                        return luv_reason(ret_reason, -EINVAL,
                                          "There is no option %s, or it takes no value.", argv[optind - 1]);
                }
                if (c == ':')
                        return luv_reason(ret_reason, -EINVAL, "%s needs a value.", argv[optind - 1]);
                if (c != 1) {
                        if (c >= _OPTION_VERB_FIRST)
                                given |= BIT(c);
                        r = parse_option(&o, c, optarg, json_terminal, ret_reason);
                        if (r < 0)
                                return r;
                        continue;
                }

                if ((int) o.verb < 0) {
                        o.verb = verb_from_string(optarg);
                        if ((int) o.verb < 0)
                                return luv_reason(ret_reason, -EINVAL, "There is no command '%s'.", optarg);
                        continue;
                }
                n++;
                if (o.verb == VERB_INHIBIT) {
                        o.command = argv + optind - 1;
                        break;
                }
                if (n == 1)
                        o.argument = optarg;
        }

        /* What stands behind "--". */
        for (; o.command == NULL && optind < argc; optind++) {
                if ((int) o.verb < 0) {
                        o.verb = verb_from_string(argv[optind]);
                        if ((int) o.verb < 0)
                                return luv_reason(ret_reason, -EINVAL, "There is no command '%s'.",
                                                  argv[optind]);
                        continue;
                }
                n++;
                if (o.verb == VERB_INHIBIT)
                        o.command = argv + optind;
                else if (n == 1)
                        o.argument = argv[optind];
        }

        if ((int) o.verb < 0)
                o.verb = VERB_STATUS;
        if (n < grammar[o.verb].min)
                return luv_reason(ret_reason, -EINVAL, "%s needs an argument: %s.", verb_to_string(o.verb),
                                  grammar[o.verb].missing);
        if (n > grammar[o.verb].max)
                return luv_reason(ret_reason, -EINVAL, "%s takes %s.", verb_to_string(o.verb),
                                  grammar[o.verb].max == 0 ? "no argument" : "one argument");
        for (int i = _OPTION_VERB_FIRST; i < _OPTION_MAX; i++)
                if (given & ~grammar[o.verb].options & BIT(i))
                        return luv_reason(ret_reason, -EINVAL, "%s does not take --%s.",
                                          verb_to_string(o.verb), option_name(i));
        if (o.initrd && !o.argument)
                return luv_reason(ret_reason, -EINVAL, "--initrd needs the kernel it belongs to.");
        if ((given & BIT(OPTION_CMDLINE)) && (given & BIT(OPTION_REUSE_CMDLINE)))
                return luv_reason(ret_reason, -EINVAL, "--cmdline and --reuse-cmdline exclude each other.");
        if (o.svg && streq(o.svg, "-") && o.json != JSON_MODE_OFF)
                return luv_reason(ret_reason, -EINVAL, "--svg=- and --json cannot both have stdout.");

        *ret = o;
        o = (Options) {};
        return 0;
}

void ctl_options_done(Options *o)
{
        o->sacrifice = luv_strv_free(o->sacrifice);
}

void ctl_help(FILE *f)
{
        fputs("Usage: luvfioctl [OPTION...] [COMMAND]\n"
              "\n"
              "Replace the host's kernel under running machines.\n"
              "\n"
              "Commands:\n"
              "  status                 where an update is, machines, what is preserved (default)\n"
              "  check [KERNEL]         name everything that speaks against an update, and the remedy\n"
              "  stage [KERNEL]         do all that can be done while machines run\n"
              "  update [KERNEL]        replace the kernel\n"
              "  abort                  give an update up\n"
              "  machines               list machines\n"
              "  devices                list machines' devices\n"
              "  monitor                follow what happens\n"
              "  inhibit [COMMAND...]   forbid updates while COMMAND runs, or until interrupted\n"
              "  history                list past updates\n"
              "  analyze [UPDATE]       show where an update's time went (default: the last)\n"
              "  discard MACHINE        give a stranded machine up\n"
              "\n"
              "Options of check, stage and update:\n"
              "     --initrd=FILE       initrd for KERNEL\n"
              "     --cmdline=STRING    the new kernel's command line\n"
              "     --reuse-cmdline     the running kernel's command line (default)\n"
              "     --sacrifice=MACHINE the update may lose this machine if it holds it up (repeatable)\n"
              "Options of update:\n"
              "     --dry-run           check and stage, and take it back\n"
              "     --deadline=TIME     for machines to stop (default: 10s)\n"
              "     --fallback=none|cold\n"
              "                         when a live update cannot be had: nothing, or a cold reboot\n"
              "Other options:\n"
              "     --who=STRING --why=STRING\n"
              "                         who inhibits updates, and why\n"
              "     --lines=N           of history (default: 20)\n"
              "     --svg=FILE          write analyze's timeline as a picture (-: to stdout)\n"
              "  -j --json[=short|pretty|seq]\n"
              "                         print JSON\n"
              "     --socket=ADDRESS    luvfiod's socket, or a URL as ssh-unix:HOST:PATH\n"
              "     --no-ask-password   do not ask for authentication\n"
              "  -h --help              show this text\n"
              "     --version           show the version\n"
              "\n"
              "Exit codes: 0 done, 1 failed, 2 usage, 3 blocked, 4 aborted, 5 machines stranded,\n"
              "6 luvfiod not reachable, 7 not permitted. See luvfioctl(1).\n",
              f);
}
