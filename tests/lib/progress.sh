# shellcheck shell=bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Shows long steps: what is done, for how long, and a bar where the length is known. On a terminal one line is
# redrawn; elsewhere plain lines are printed. To be sourced.
#
#   step "what it does" COMMAND...    runs COMMAND, its output goes to a log that is shown when it fails
#
# A length is known when the command's output has "[n/m]" (ninja, our own scripts) or "NN%" in its last lines.

# Where the logs go; a failed step's log is kept.
: "${STEP_LOG_DIR:=${TMPDIR:-/tmp}}"

_step_bar() {
        local log=$1 last n m i bar=
        last=$(tail -c 4096 "$log" 2>/dev/null | tr '\r' '\n' | grep -aoE '\[ *[0-9]+/[0-9]+\]|\b[0-9]{1,3}%' | tail -n 1)
        case $last in
        \[*)
                n=${last#[}
                n=${n%%/*}
                m=${last##*/}
                m=${m%]}
                n=$((10#${n// /}))
                m=$((10#$m))
                ;;
        *%)
                n=$((10#${last%\%}))
                m=100
                ;;
        *) return 0 ;;
        esac
        [ "$m" -gt 0 ] && [ "$n" -le "$m" ] || return 0
        for ((i = 0; i < 20; i++)); do
                if [ $((i * m)) -lt $((n * 20)) ]; then bar+='#'; else bar+='.'; fi
        done
        printf ' [%s] %d/%d' "$bar" "$n" "$m"
}

step() {
        local what=$1 log start now shown=0 pid rc=0
        shift
        log=$(mktemp "$STEP_LOG_DIR/step.XXXXXX.log") || return 1
        start=$SECONDS
        "$@" >"$log" 2>&1 </dev/null &
        pid=$!
        [ -t 1 ] || printf '==> %s\n' "$what"
        while kill -0 "$pid" 2>/dev/null; do
                now=$((SECONDS - start))
                if [ -t 1 ]; then
                        printf '\r\033[K  ... %s, %d s%s' "$what" "$now" "$(_step_bar "$log")"
                elif [ $((now - shown)) -ge 30 ]; then
                        shown=$now
                        printf '    %s: %d s so far%s\n' "$what" "$now" "$(_step_bar "$log")"
                fi
                sleep 0.2
        done
        wait "$pid" || rc=$?
        now=$((SECONDS - start))
        [ -t 1 ] && printf '\r\033[K'
        if [ "$rc" -eq 0 ]; then
                printf '    %s: done in %d s\n' "$what" "$now"
                rm -f "$log"
        else
                printf '    %s: FAILED after %d s with exit code %d; the end of %s:\n' "$what" "$now" "$rc" "$log" >&2
                tail -n 30 "$log" | sed 's/^/      | /' >&2
        fi
        return "$rc"
}
