/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <locale.h>

#include "ctl/ctl.h"

int main(int argc, char *argv[])
{
        _cleanup_(ctl_done) Ctl c = {};
        _cleanup_free_ char *reason = NULL;

        (void) setlocale(LC_CTYPE, "");
        ctl_terminal_init(&c.out, stdout);
        ctl_terminal_init(&c.err, stderr);

        if (ctl_parse_arguments(argc, argv, c.out.live, &c.options, &reason) < 0)
                return ctl_fail(&c, CTL_USAGE, "%s See 'luvfioctl --help'.",
                                reason ? reason : "Out of memory.");
        return ctl_run(&c);
}
