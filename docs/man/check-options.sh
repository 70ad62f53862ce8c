#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# check-options.sh MANUAL PROGRAM: the manual explains each command and option that --help names, and there are some.
set -eu

manual=$1 program=$2
fault=0

help=$("$program" --help)
options=$(printf '%s\n' "$help" | grep -o -- '--[a-z][a-z-]*' | sort -u)
[ -n "$options" ] || {
        echo "$program --help names no option" >&2
        exit 1
}
for option in $options; do
        grep -Eq "^\.It .*(Fl |, )-${option#--}( |$)" "$manual" || {
                echo "$manual does not explain $option" >&2
                fault=1
        }
done
for verb in $(printf '%s\n' "$help" | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p'); do
        grep -Eq "^\.It Cm $verb( |$)" "$manual" || {
                echo "$manual does not explain $verb" >&2
                fault=1
        }
done
exit "$fault"
