#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# virt-host-upgrade.sh SCRIPT: which scripts virt-host-upgrade calls when, with what, and what a refusal does. Luvfioctl is
# one that notes what it is asked.
set -eu

upgrade=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/d"

cat >"$work/luvfioctl" <<'END'
#!/bin/sh
echo "luvfioctl $*" >>"$WORK/log"
case $1 in
check)
        echo '{"findings":[]}'
        case "$*" in
        *--json*) exit "${CHECK:-0}" ;;
        *) exit "${SHOWN:-${CHECK:-0}}" ;;
        esac
        ;;
stage) exit "${STAGE:-0}" ;;
update) exit "${UPDATE:-0}" ;;
status) echo '{"state":"idle"}' ;;
machines) echo '{"machines":[]}' ;;
history) printf '{"updates":[{"updateId":"0123abc","result":"%s"}]}\n' "${RESULT:-done}" ;;
esac
END
cat >"$work/d/10-note" <<'END'
#!/bin/sh
read -r line
echo "$1 $2 $line" >>"$WORK/log"
[ "${REFUSE:-}" != "$1" ]
END
echo 'exit 1' >"$work/d/20-no-program"
chmod +x "$work/luvfioctl" "$work/d/10-note"
export WORK="$work" LUVFIOCTL="$work/luvfioctl" LUVFIO_HOST_UPGRADE_D="$work/d" LUVFIO_HOST_UPGRADE_SEEN="$work/var/seen"

# run CODE ARGUMENTS...: the exit code, and what happened is in the log.
run() {
        expected=$1
        shift
        : >"$work/log"
        code=0
        "$upgrade" "$@" >"$work/said" 2>&1 || code=$?
        [ "$code" -eq "$expected" ] || {
                echo "exit code $code of virt-host-upgrade $*, not $expected:"
                cat "$work/said" "$work/log"
                exit 1
        }
}

# happened LINE...: just that, in that order (luvfioctl's questions left out).
happened() {
        printf '%s\n' "$@" >"$work/wanted"
        grep -Ev '^luvfioctl (check|history|machines|status)' "$work/log" >"$work/got" || :
        diff -u "$work/wanted" "$work/got" || exit 1
}

history='{"updates":[{"updateId":"0123abc","result":"done"}]}'
run 0 --check /k
happened 'check /k {"findings":[]}'
CHECK=3 run 3 --check /k
SHOWN=3 run 3 --check /k
SHOWN=0 CHECK=3 run 3 --check /k
REFUSE=check run 3 --check /k
run 0 --cmdline='a b' --deadline=5 /k
happened 'check /k {"findings":[]}' 'luvfioctl stage /k --cmdline=a b' 'staged /k {"machines":[]}' 'begin /k {"machines":[]}' \
        'luvfioctl update --deadline=5'
CHECK=3 run 3 /k
happened 'check /k {"findings":[]}'
REFUSE=check run 3 /k
happened 'check /k {"findings":[]}'
STAGE=4 run 4 /k
happened 'check /k {"findings":[]}' 'luvfioctl stage /k' "aborted /k $history"
for state in staged begin; do
        REFUSE=$state run 4 /k
        grep -qx 'luvfioctl abort' "$work/log"
        grep -q "^aborted /k" "$work/log"
        if grep -q '^luvfioctl update' "$work/log"; then
                exit 1
        fi
        grep -q "10-note refuses at $state" "$work/said"
done
UPDATE=4 run 4 /k
grep -q "^aborted /k" "$work/log"
run 2
run 2 /k /other
run 2 --nonsense /k

# In the new kernel: once.
run 0 --finish
happened "done $(uname -r) $history"
run 0 --finish
[ ! -s "$work/got" ] || ! grep -q '^done' "$work/log"
rm "$work/var/seen"
RESULT=stranded run 0 --finish
grep -q "^stranded $(uname -r)" "$work/log"
echo PASS
