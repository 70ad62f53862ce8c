# shellcheck shell=sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Inside the full image: example machines under systemd. Put in as /usr/lib/luvhost/vmm.sh, to be sourced.

# Where machines report; a folder on disk, if it is to be read after the jump.
: "${REPORTS:=/run}"

# next_cmdline: this kernel's command line, without what the test host's first boot was told.
next_cmdline() {
        tr ' ' '\n' </proc/cmdline | grep -v '^init=' | paste -sd ' '
}

# luvfiod_enable: luvfiod in this boot and in later ones.
luvfiod_enable() {
        systemctl enable --quiet luvfiod.service luvfiod.socket luvfiod-machine.socket luvfio-plugin-host@vfio-pci.socket
        systemctl start luvfio-plugin-host@vfio-pci.socket luvfiod.service
}

# vmm_define NAME ARGUMENTS...: makes luvfio-example-vmm@NAME.service, started in this boot and in later ones.
vmm_define() {
        vmm=$1
        shift
        mkdir -p /etc/luvfio/example-vmm
        echo "ARGS=\"--report $REPORTS/$vmm.report $*\"" >"/etc/luvfio/example-vmm/$vmm.conf"
        systemctl enable --quiet --no-reload "luvfio-example-vmm@$vmm.service"
}

# until_true SECONDS COMMAND...: waits until COMMAND succeeds.
until_true() {
        end=$(($(cut -d. -f1 /proc/uptime) + $1))
        shift
        until "$@" >/dev/null 2>&1; do
                [ "$(cut -d. -f1 /proc/uptime)" -lt "$end" ] || return 1
                sleep 0.2
        done
}

# vmm_reported NAME EVENT: whether the machine told of an event in this boot.
vmm_reported() {
        grep -q "\"event\":\"$2\"" "$REPORTS/$1.report"
}

# vmm_last NAME EVENT: the last such line, JSON.
vmm_last() {
        grep "\"event\":\"$2\"" "$REPORTS/$1.report" | tail -n 1
}

# vmm_machine NAME: the machine as luvfiod has it, JSON.
vmm_machine() {
        luvfioctl machines --json=short | jq -ce --arg name "$1" '.. | objects | select(.name? == $name)' | head -n 1
}

# vmm_is NAME STATE
vmm_is() {
        [ "$(vmm_machine "$1" | jq -r .state)" = "$2" ]
}

# update_result: how the last update ended; nothing while one is under way.
update_result() {
        luvfioctl status --json=short | jq -re 'select(.state == "idle") | .lastUpdate.result'
}

update_is() {
        [ "$(update_result)" = "$1" ]
}

# update_number N: whether N updates are in the history and none is under way.
update_number() {
        update_result && [ "$(luvfioctl history --json=short | jq '.updates | length')" -ge "$1" ]
}
