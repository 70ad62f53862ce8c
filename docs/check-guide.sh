#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# check-guide.sh GUIDE INCLUDE CC...: the C of the VMM author's guide compiles, given what a VMM has of its own.
set -eu

guide=$1 include=$2
shift 2

# shellcheck disable=SC2016 # backquotes of Markdown
code=$(sed -n '/^```c$/,/^```$/ { /^```/d; p }' "$guide")
[ -n "$code" ] || {
        echo "$guide has no C" >&2
        exit 1
}
"$@" -std=gnu17 -Wall -Wextra -Wno-unused-parameter -Werror -fsyntax-only -I "$include" -x c - <<END
void stop_vcpus(void *machine);
void run_vcpus(void *machine);
int vcpus_run(void *machine);
void device_interrupts_off(void *machine);
void device_interrupts_on(void *machine);
int write_state_to_memfd(void *machine);
void machine_from(void *machine, int ram_fd, int state_fd, int nic_fd);

$code
END
