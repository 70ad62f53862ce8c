#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# test-completion.sh COMPLETION LUVFIOCTL: the completion knows the commands and options that --help names.
set -eu

completion=$1 luvfioctl=$2
functions=/usr/share/bash-completion/bash_completion
[ -e "$functions" ] || exit 77
set +eu
# shellcheck disable=SC1090 # the system's
. "$functions"
# shellcheck disable=SC1090
. "$completion"

complete_line() {
        COMP_LINE=$1
        read -ra COMP_WORDS <<<"$1"
        [[ $1 == *' ' ]] && COMP_WORDS+=('')
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        COMP_POINT=${#COMP_LINE}
        COMPREPLY=()
        _luvfioctl
        printf '%s\n' "${COMPREPLY[@]}"
}

fault=0
expect() {
        local line=$1 word
        shift
        for word; do
                complete_line "$line" | grep -qxF -e "$word" || {
                        echo "'$line' does not offer $word" >&2
                        fault=1
                }
        done
}

mapfile -t verbs < <("$luvfioctl" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p')
[ ${#verbs[@]} -ge 12 ] || {
        echo "found ${#verbs[@]} commands in --help" >&2
        exit 1
}
expect 'luvfioctl ' "${verbs[@]}"
mapfile -t options < <("$luvfioctl" --help | sed -n '/^Options of check/,/^Other/p' | grep -o -- '--[a-z-]*' | sort -u)
expect 'luvfioctl update -' "${options[@]}" --help --json
expect 'luvfioctl st' status stage
expect 'luvfioctl update --fallback ' none cold
expect 'luvfioctl --json' --json
expect 'luvfioctl inhibit --w' --who --why
exit "$fault"
