# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
#
# Completion of luvfioctl(1).

# Values of a member of all objects in a reply, asked with the socket that is on the line.
_luvfioctl_ask() {
        local member=$1 i socket=()
        shift
        for ((i = 1; i < ${#COMP_WORDS[@]}; i++)); do
                case ${COMP_WORDS[i]} in
                --socket) socket=("--socket=${COMP_WORDS[i + 1]#=}${COMP_WORDS[i + 2]}") ;;
                --socket=*) socket=("${COMP_WORDS[i]}") ;;
                esac
        done
        luvfioctl "${socket[@]}" --json=short "$@" 2>/dev/null | grep -o "\"$member\":\"[^\"]*\"" | cut -d'"' -f4
}

_luvfioctl() {
        local cur prev words cword split
        _init_completion -s || return

        local common='--help --version --json --socket --no-ask-password'
        local kernel='--initrd --cmdline --reuse-cmdline --sacrifice'
        local verbs='status check stage update abort machines devices monitor inhibit history analyze discard'
        local verb='' i

        case $prev in
        --json)
                mapfile -t COMPREPLY < <(compgen -W 'short pretty seq off' -- "$cur")
                return
                ;;
        --fallback)
                mapfile -t COMPREPLY < <(compgen -W 'none cold' -- "$cur")
                return
                ;;
        --sacrifice)
                mapfile -t COMPREPLY < <(compgen -W "$(_luvfioctl_ask name machines)" -- "$cur")
                return
                ;;
        --initrd | --svg | --socket)
                _filedir
                return
                ;;
        --cmdline | --deadline | --who | --why | --lines)
                return
                ;;
        esac
        $split && return

        for ((i = 1; i < cword; i++)); do
                case ${words[i]} in
                --initrd | --svg | --socket | --cmdline | --deadline | --who | --why | --lines | --sacrifice | --fallback)
                        ((i++))
                        ;;
                -*) ;;
                *)
                        verb=${words[i]}
                        break
                        ;;
                esac
        done

        if [[ $verb == inhibit && $cur != -* ]]; then
                _command_offset $((i + 1))
                return
        fi
        if [[ $cur == -* ]]; then
                case $verb in
                check | stage) common+=" $kernel" ;;
                update) common+=" $kernel --dry-run --deadline --fallback" ;;
                inhibit) common+=' --who --why' ;;
                history) common+=' --lines' ;;
                analyze) common+=' --svg' ;;
                esac
                mapfile -t COMPREPLY < <(compgen -W "$common" -- "$cur")
                return
        fi
        case $verb in
        '') mapfile -t COMPREPLY < <(compgen -W "$verbs" -- "$cur") ;;
        check | stage | update) _filedir ;;
        analyze) mapfile -t COMPREPLY < <(compgen -W "$(_luvfioctl_ask updateId history)" -- "$cur") ;;
        discard) mapfile -t COMPREPLY < <(compgen -W "$(_luvfioctl_ask name machines)" -- "$cur") ;;
        esac
} &&
        complete -F _luvfioctl luvfioctl
