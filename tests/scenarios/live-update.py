#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: the whole way, two kernels there and back, by luvfioctl and varlinkctl; masked interrupts that come all the same are dropped
# timeout: 600

import json
import re
import sys
from pathlib import Path

LIB = Path(__file__).resolve().parent / "lib"
sys.path.insert(0, str(LIB))
import full  # noqa: E402 pylint: disable=wrong-import-position
from full import scenario  # noqa: E402 pylint: disable=wrong-import-position

BEFORE = r"""
journalctl --update-catalog
luvfiod_up
check "luvfiod's exposure is at most 3.5" sh -c "systemd-analyze security luvfiod.service --threshold=35 --no-pager >/dev/null"

# The interfaces, as varlinkctl has them.
host=unix:/run/luvfiod/org.luvfio.Host machine=unix:/run/luvfiod/org.luvfio.Machine
for i in Host Machine; do
        varlinkctl introspect unix:/run/luvfiod/org.luvfio.$i org.luvfio.$i >/tmp/$i.varlink
        check "org.luvfio.$i is described" grep -q "^interface org.luvfio.$i" /tmp/$i.varlink
        check "org.luvfio.$i: the description is valid" varlinkctl validate-idl /tmp/$i.varlink
        # What has fields in a single line has no comments on them.
        check "org.luvfio.$i: every field and every value has a comment" awk '
                /^(method|error|type)/ { open = 1; if (last !~ /^#/) { print; bad = 1 } }
                /^[^#]*\([a-zA-Z]/ || open && /^\t+[a-zA-Z_]+(:|,|$)/ && last !~ /#/ { print; bad = 1 }
                { last = $0 }
                END { exit bad }' /tmp/$i.varlink
done
check "Describe" sh -c "varlinkctl call $host org.luvfio.Host.Describe '{}' | jq -e '.backend == \"device\" and .state == \"idle\"'"
for m in ListMachines ListDevices History Check; do
        check "$m" varlinkctl call $host org.luvfio.Host.$m '{}'
done
for m in 'Abort {}' 'Analyze {}' 'Discard {"machine":"nobody"}'; do
        refused "${m%% *}: a clear error" 1 'org.luvfio.Host' varlinkctl call $host org.luvfio.Host.${m%% *} "${m#* }"
done
check "Check with a kernel's fd" varlinkctl call --push-fd=/boot/vmlinuz-b $host org.luvfio.Host.Check '{"kernelFileDescriptor":0}'
check "Register" varlinkctl call $machine org.luvfio.Machine.Register '{"name":"by-hand"}'
python3 -c 'import os, time; os.ftruncate(os.memfd_create("hand"), 4096); os.dup2(3, 4); time.sleep(1000)' &
wait_for 20 test -e /proc/$!/fd/4
check "Preserve with a memfd" varlinkctl call --push-fd=/proc/$!/fd/3 $machine org.luvfio.Machine.Preserve \
        '{"machine":"by-hand","name":"ram","kind":"memfd","fileDescriptor":0}'
refused "Preserve with a file that is none" 1 'UnsupportedFileDescriptor' \
        varlinkctl call --push-fd=/etc/passwd $machine org.luvfio.Machine.Preserve \
        '{"machine":"by-hand","name":"file","kind":"memfd","fileDescriptor":0}'
check "SetBlockers" varlinkctl call $machine org.luvfio.Machine.SetBlockers \
        '{"machine":"by-hand","blockers":[{"message":"it stands on its head"}]}'
for m in Prepared Quiesced Committed Resumed 'Retrieve'; do
        p='{"machine":"by-hand"}'
        [ $m = Retrieve ] && p='{"machine":"by-hand","name":"ram"}'
        refused "$m: not now" 1 'WrongState' varlinkctl call $machine org.luvfio.Machine.$m "$p"
done
check "Watch" sh -c "timeout 3 varlinkctl --more call $machine org.luvfio.Machine.Watch '{\"name\":\"by-hand\"}' | grep -q attached"
check "Monitor" sh -c "timeout 3 varlinkctl --more call $host org.luvfio.Host.Monitor '{}' | grep -q idle"
check "Inhibit" sh -c "timeout 3 varlinkctl --more call $host org.luvfio.Host.Inhibit '{\"who\":\"a\",\"why\":\"b\"}'; test \$? -eq 124"
check "Withdraw" varlinkctl call $machine org.luvfio.Machine.Withdraw '{"machine":"by-hand"}'
kill $!
check "Stage with a kernel's fd" varlinkctl --more call --push-fd=/boot/vmlinuz-b $host org.luvfio.Host.Stage '{"kernelFileDescriptor":0}'
check "it is staged" update_is staged
check "Abort" varlinkctl call $host org.luvfio.Host.Abort '{}'
check "it is no more" update_is idle
check "Update, as a dry run" varlinkctl --more call --push-fd=/boot/vmlinuz-b $host org.luvfio.Host.Update \
        '{"kernelFileDescriptor":0,"dryRun":true}'
check "which takes back what it did" update_is idle

# What an iommufd has that cannot be preserved is known before anything stops.
/usr/lib/rogue/map-anonymous >/tmp/anonymous &
check "a machine whose iommufd has anonymous memory" wait_for 20 grep -q preserved /tmp/anonymous
refused "check says what is mapped, and where" 3 'machine anonymous cannot be preserved: .*anonymous memory.* iova 0x123000' \
        luvfioctl check /boot/vmlinuz-b
kill -USR1 $!
check "and nothing when it is not any more" wait_for 20 sh -c '! luvfioctl check /boot/vmlinuz-b | grep iova'
kill $!
check "that machine is gone" wait_for 20 sh -c '! luvfioctl machines --json=short | grep anonymous'

# Two machines.
vfio-bind $(bdf igb) $(bdf nvme)
mkdir -p /etc/luvfio/example-vmm
echo "ARGS=--device $(bdf igb) --report /var/log/vm-igb.json" >/etc/luvfio/example-vmm/vm-igb.conf
echo "ARGS=--device $(bdf nvme) --report /var/log/vm-nvme.json" >/etc/luvfio/example-vmm/vm-nvme.conf
for vm in vm-igb vm-nvme; do
        systemctl enable luvfio-example-vmm@$vm 2>/dev/null
        check "$vm starts" systemctl start luvfio-example-vmm@$vm
        check "$vm runs" wait_for 10 machine_is $vm running
done
check "nothing blocks an update" luvfioctl check /boot/vmlinuz-b
luvfioctl check /boot/vmlinuz-b >/tmp/check
for d in $(bdf igb) $(bdf nvme); do
        check "check says what is preserved of $d" grep -q "Of device $d .* preserves: owner, state, dma, iommu, interrupts; not: sriov" /tmp/check
        check "the promise is the same" sh -c "luvfioctl devices --json=short | jq -e '.devices[] | select(.address == \"$d\") | .promise == \"latched\"'"
done
sed 's/^/# /' /tmp/check
check "check finds no reset" sh -c '! grep "will be reset" /tmp/check'
check "Describe's promise is the same" sh -c 'luvfioctl status | grep "vfio preserved"'
check "a dry run" luvfioctl update /boot/vmlinuz-b --dry-run
check "both run on" sh -c 'luvfioctl machines --json=short | jq -e "[.machines[].state] == [\"running\", \"running\"]"'
uname -r >/var/log/before
luvfioctl update /boot/vmlinuz-b
echo "# luvfioctl update ended with $?"
"""

CHECK = r"""
jumps=@JUMPS@
check "another kernel runs" sh -c "[ \$(uname -r) != \$(cat /var/log/before) ]"
for vm in vm-igb vm-nvme; do
        check "$vm: generation $jumps" wait_for 60 sh -c "[ \$(luvfioctl machines --json=short | jq '.machines[] | select(.name == \"$vm\") | .generation') -eq $jumps ]"
        check "$vm runs" wait_for 60 machine_is $vm running
done
check "the update is over" wait_for 60 update_is idle
for vm in vm-igb vm-nvme; do
        check "$vm: RAM and device are right" sh -c "grep '\"resumed\"' /var/log/$vm.json | tail -n 1 | jq -e '.ok and .checksumSame and .stateSame'"
        check "$vm: its device ran on" sh -c "grep '\"resumed\"' /var/log/$vm.json | tail -n 1 | jq -e '[.outcomes | to_entries[] | select(.key | startswith(\"vfio-\")).value] == [\"preserved\"]'"
        check "$vm: nothing failed" sh -c "! grep '\"failed\"' /var/log/$vm.json"
        check "$vm: unit is active" systemctl is-active luvfio-example-vmm@$vm
done
# And the one that was staged and given up.
check "result: done" sh -c 'luvfioctl history --json=short | jq -e ".updates[0].result == \"done\" and (.updates | length) == @JUMPS@ + 1"'
luvfioctl analyze >/out/analyze.txt
luvfioctl analyze --json=short >/out/analyze.json
check "analyze makes a picture" luvfioctl analyze --svg /out/timeline.svg
check "no session is stored any more" wait_for 20 sh -c '[ $(systemctl show -P NFileDescriptorStore luvfiod) -eq 0 ]'
check "luvfiod's weight is that of others" wait_for 60 as_others system.slice/luvfiod.service
check "no unit failed" sh -c '[ -z "$(systemctl --failed --plain --no-legend | grep -E "luvfio|rogue")" ]'
check "luvfiod said nothing bad" sh -c '! journalctl -b -u luvfiod -p err --no-pager -q | grep .'
check "messages have their fields" sh -c 'journalctl -b -u luvfiod -o json -q | jq -se "[.[] | select(.LUVFIO_UPDATE_ID and .MESSAGE_ID)] | length > 3"'
journalctl -o json -q LUVFIO_UPDATE_ID=$(luvfioctl history --json=short | jq -r '.updates[0].updateId') >/tmp/journal
check "LUVFIO_STATE: messages of both kernels have it" jq -se 'map(.LUVFIO_STATE) | index("draining") and index("resuming")' /tmp/journal
for vm in vm-igb vm-nvme; do
        check "LUVFIO_VM, LUVFIO_SESSION: $vm's session in the kernel" jq -se --arg vm $vm \
                'any(.LUVFIO_VM == $vm and (.LUVFIO_SESSION // "" | startswith("luvfio-\($vm)-")))' /tmp/journal
        check "LUVFIO_DURATION_US: how long $vm stood" jq -se --arg vm $vm --slurpfile analysis /out/analyze.json \
                '[.[] | select(.LUVFIO_VM == $vm and .LUVFIO_DURATION_US) | .LUVFIO_DURATION_US | tonumber] ==
                 [$analysis[0] | .report // . | .machines[] | select(.machine == $vm) | .blackoutUSec]' /tmp/journal
done
check "messages are in the catalog" sh -c 'for i in $(journalctl -b -u luvfiod -o json -q | jq -r "select(.LUVFIO_UPDATE_ID) | .MESSAGE_ID // empty" | sort -u); do journalctl --list-catalog $i | grep -q . || exit 1; done'
luvfioctl status
"""

AFTER = CHECK.replace("@JUMPS@", "1") + r"""
uname -r >/var/log/before
luvfioctl update /boot/vmlinuz-a
echo "# luvfioctl update ended with $?"
"""

result = full.run("live-update", "--device", "igb", "--device", "nvme", "-m", "3072", "--script-deadline", "240",
                  "--outside", LIB / "force-irq", "--trace", "pci_cfg_write", "--trace", "vtd_ir_irte_get", "--trace", "vtd_frr_new",
                  scripts=[BEFORE, AFTER, CHECK.replace("@JUMPS@", "2")])
# The one interrupt for which faults were switched on: see below.
full.report(result, ["before", "after", "boot3"], allowed=r"DMAR: (DRHD: handling fault status|\[INTR-REMAP\])")
releases = [b["release"] for b in result.json["boots"]]
scenario.ok(len(releases) == 3 and releases[0] != releases[1] and releases[0] == releases[2], "a to b to a", releases)
analyze = result.out / "files/analyze.json"
if scenario.ok(analyze.exists(), "analyze"):
    report = json.loads(analyze.read_text())
    report = report.get("report", report)
    names = {p["name"] for p in report["phases"] if not p.get("machine")}
    wanted = {"checking", "staging", "draining", "quiescing", "handing_over", "kernel", "restoring", "resuming"}
    scenario.ok(wanted <= names, f"all phases are there: {sorted(names)}")
    scenario.ok(report["clock"] == "tsc", f"the clock over the jump is {report['clock']}")
# The safety net: what an igb raises in the second jump although it is masked is dropped in the IOMMU.
said = (result.out / "outside.out").read_text(errors="replace")
m = re.search(r"MSI-X is (0x\w+), index (0x\w+), raised (\d+) times, (\d+) tables", said)
if scenario.ok(m, "an igb is made to raise interrupts in the second jump", said):
    latched, index, raised, tables = (int(x, 0) for x in m.groups())
    scenario.ok(latched >> 14 == 3, "which were latched", said)
    trace = result.trace()
    # What QEMU calls the high word is the lower one: bit 0 is Present, bit 1 Fault Processing Disable.
    met = [int(x, 16) & 3 for line in trace for x in re.findall(rf"vtd_ir_irte_get index {index} .*high (0x\w+)", line)]
    faults = [line for line in trace if "vtd_frr_new" in line]
    scenario.ok(tables == 2 and met.count(2) == raised, f"each of {raised} was dropped, by the old kernel's table or by the new one's", met)
    scenario.ok(met.count(0) == 1 and len(faults) == 1, "none made a fault but the one for which faults were switched on", faults)
scenario.done()
