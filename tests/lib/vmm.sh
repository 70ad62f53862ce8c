# shellcheck shell=sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Inside the full image: example machines under systemd. Put in as /usr/lib/luvhost/vmm.sh, to be sourced.

# vmm_define NAME ARGUMENTS...: makes luvfio-example-vmm@NAME.service, started in this boot and in later ones.
vmm_define() {
        vmm=$1
        shift
        mkdir -p /etc/luvfio-example-vmm
        echo "ARGUMENTS=$*" >"/etc/luvfio-example-vmm/$vmm.conf"
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
        grep -q "\"event\":\"$2\"" "/run/luvfio-example-vmm/$1.report"
}

# vmm_last NAME EVENT: the last such line, JSON.
vmm_last() {
        grep "\"event\":\"$2\"" "/run/luvfio-example-vmm/$1.report" | tail -n 1
}

# vmm_machine NAME: the machine as luvfiod has it, JSON.
vmm_machine() {
        luvfioctl machines --json=short | jq -ce --arg name "$1" '.. | objects | select(.name? == $name)' | head -n 1
}

# vmm_is NAME STATE
vmm_is() {
        [ "$(vmm_machine "$1" | jq -r .state)" = "$2" ]
}

# update_result: how the last update ended.
update_result() {
        luvfioctl status --json=short | jq -re '.lastUpdate.result // .description.lastUpdate.result // empty'
}

update_is() {
        [ "$(update_result)" = "$1" ]
}
