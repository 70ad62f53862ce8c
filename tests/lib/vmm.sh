# shellcheck shell=sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Inside the full image: luvfiod, and example machines under systemd. Put in as /usr/lib/luvhost/vmm.sh, to be sourced.

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

# resume_deadline SECONDS: how long luvfiod waits for its machines after the jump.
resume_deadline() {
        mkdir -p /etc/systemd/system/luvfiod.service.d
        cat >/etc/systemd/system/luvfiod.service.d/deadline.conf <<END
[Service]
ExecStart=
ExecStart=$(systemctl cat luvfiod | sed -n 's/^ExecStart=//p' | tail -n 1) --resume-deadline=$1
END
        systemctl daemon-reload
}

# vmm_define NAME ARGUMENTS...: makes luvfio-example-vmm@NAME.service, started in this boot and in later ones.
vmm_define() {
        vmm=$1
        shift
        mkdir -p /etc/luvfio/example-vmm
        echo "ARGS=\"--report $REPORTS/$vmm.report $*\"" >"/etc/luvfio/example-vmm/$vmm.conf"
        systemctl enable --quiet --no-reload "luvfio-example-vmm@$vmm.service"
}

# wait_for SECONDS COMMAND...: until COMMAND succeeds. The longer it takes, the more seldom it is tried: what it waits for needs the CPU.
wait_for() {
        read -r began _ </proc/uptime
        end=$((${began%.*} + $1))
        shift
        until "$@" >/dev/null 2>&1; do
                read -r now _ </proc/uptime
                [ "${now%.*}" -lt "$end" ] || return 1
                case $((${now%.*} - ${began%.*})) in
                [0-2]) sleep 0.2 ;;
                ?) sleep 0.5 ;;
                [1-4]?) sleep 1 ;;
                *) sleep 3 ;;
                esac
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

# machine_field NAME FIELD: what luvfiod says of a machine.
machine_field() {
        luvfioctl machines --json=short | jq -re --arg n "$1" ".machines[] | select(.name == \$n) | .$2"
}

# machine_is NAME STATE
machine_is() {
        [ "$(machine_field "$1" state)" = "$2" ]
}

# update_result: how the last update ended; nothing while one is under way.
update_result() {
        luvfioctl status --json=short | jq -re 'select(.state == "idle") | .lastUpdate.result'
}

# update_ended RESULT: whether none is under way and the last one ended so.
update_ended() {
        [ "$(update_result)" = "$1" ]
}

# update_number N: whether N updates are in the history and none is under way.
update_number() {
        update_result && [ "$(luvfioctl history --json=short | jq '.updates | length')" -ge "$1" ]
}
