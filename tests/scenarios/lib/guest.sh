# shellcheck shell=sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# What the scripts of scenarios have inside the full image. Each check is a line of TAP.

# shellcheck source=../../lib/vmm.sh
. /usr/lib/luvhost/vmm.sh

n=0

ok() {
        n=$((n + 1))
        echo "ok $n - $*"
}

not_ok() {
        n=$((n + 1))
        echo "not ok $n - $*"
}

# check WHAT COMMAND...: the command succeeds.
check() {
        what=$1
        shift
        if "$@" >/tmp/said 2>&1; then
                ok "$what"
                failed_now=
        else
                echo "# exit code $? of: $*"
                sed 's/^/# /' /tmp/said
                not_ok "$what"
                failed_now=yes
        fi
}

# refused WHAT CODE PATTERN COMMAND...: the command ends with the exit code (a pattern too), and what it says matches.
refused() {
        what=$1 code=$2 pattern=$3
        shift 3
        "$@" >/tmp/said 2>&1
        rc=$?
        if echo "$rc" | grep -Eqx "$code" && grep -Eq "$pattern" /tmp/said; then
                ok "$what"
        else
                echo "# exit code $rc of: $*; $code and /$pattern/ were expected"
                sed 's/^/# /' /tmp/said
                not_ok "$what"
        fi
}

# must WHAT COMMAND...: as check, but nothing that follows makes sense without it.
must() {
        check "$@"
        [ -n "$failed_now" ] || return 0
        explain | sed 's/^/# /'
        exit 1
}

# luvfiod in this boot and in later ones; it answers.
luvfiod_up() {
        luvfiod_enable
        wait_for 20 luvfioctl status
}

# kill_luvfiod: by SIGKILL, and wait until another one answers. Each time is the first: else it would wait longer each time.
kill_luvfiod() {
        old=$(systemctl show -P MainPID luvfiod.service)
        systemctl reset-failed luvfiod.service
        kill -KILL "$old" || return 1
        wait_for 20 another_luvfiod "$old" && wait_for 20 luvfioctl status
}

another_luvfiod() {
        new=$(systemctl show -P MainPID luvfiod.service)
        [ "$new" -ne 0 ] && [ "$new" -ne "$1" ]
}

# as_others CGROUP: it has the weight of any other unit. Where none has another there is no such file.
as_others() {
        [ -d "/sys/fs/cgroup/$1" ] && { [ ! -e "/sys/fs/cgroup/$1/cpu.weight" ] || grep -qx 100 "/sys/fs/cgroup/$1/cpu.weight"; }
}

# update_is STATE
update_is() {
        luvfioctl status --json=short | jq -e --arg s "$1" '.state == $s' >/dev/null
}

# How often the VMM NAME said a line that matches PATTERN, in all its lives.
said() {
        grep -Ec "^$1: $2" "/var/log/rogue-$1.log"
}

# vmm NAME ARGUMENTS...: starts a rogue-vmm as a unit that comes again after the jump.
vmm() {
        name=$1
        shift
        mkdir -p /etc/rogue
        echo "ARGS=$*" >"/etc/rogue/$name.env"
        systemctl enable "rogue@$name.service" 2>/dev/null
        systemctl start "rogue@$name.service"
        wait_for 20 grep -q "^$name: runs" "/var/log/rogue-$name.log"
}

# orders NAME WORD...: what it is to do wrong from now on.
orders() {
        mkdir -p /etc/rogue
        who=$1
        shift
        printf '%s\n' "$@" >"/etc/rogue/$who.orders"
}

# all_run NAME...: luvfiod and the VMMs say so.
all_run() {
        for name; do
                wait_for 20 machine_is "$name" running || return 1
                systemctl is-active --quiet "rogue@$name.service" || return 1
        done
        wait_for 20 update_is idle
}

# For failures: everything that may explain them.
explain() {
        luvfioctl status
        luvfioctl machines
        journalctl -b --no-pager -u luvfiod.service -u 'luvfio-plugin-host@*' | tail -40
        tail -n 20 /var/log/rogue-*.log
}
