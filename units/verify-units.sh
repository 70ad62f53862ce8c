#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# verify-units.sh MODE UNIT...: holds units against systemd's own judgement.
#   verify           nothing in them that systemd does not understand or cannot find
#   security=SCORE   each service's exposure is at most SCORE (in tenths: 35 is 3.5)
set -eu

mode=$1
shift
command -v systemd-analyze >/dev/null || exit 77

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

for unit; do
        # What they start need not be installed yet.
        sed -E 's#^(Exec[A-Za-z]*=[-@:+!|]*)/[^ ]*#\1/bin/true#' "$unit" >"$dir/${unit##*/}"
done

cd "$dir"
case $mode in
verify)
        # A template is verified by an instance of it. Units of other packages may have faults of their own.
        set --
        for unit in *; do
                case $unit in
                *@.*) set -- "$@" "./${unit%%@.*}@test.${unit##*.}" && cp "$unit" "${unit%%@.*}@test.${unit##*.}" ;;
                *) set -- "$@" "./$unit" ;;
                esac
        done
        SYSTEMD_UNIT_PATH="$dir:" systemd-analyze verify --man=no --recursive-errors=one "$@" 2>log || {
                cat log >&2
                exit 1
        }
        # Unknown settings and sections only make a warning.
        if grep -F "$dir" log >&2; then
                exit 1
        fi
        ;;
security=*)
        for unit in *.service; do
                systemd-analyze security --offline=true --no-pager --threshold="${mode#*=}" "./$unit" >log 2>&1 || {
                        cat log >&2
                        exit 1
                }
                tail -n 1 log
        done
        ;;
*)
        echo "verify-units.sh: unknown mode '$mode'" >&2
        exit 2
        ;;
esac
