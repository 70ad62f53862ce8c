# shellcheck shell=bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# The Debian mirror and how to reach it, taken from this machine's own apt configuration. To be sourced.

# Prints the URI of the Debian archive this machine uses, whatever form its sources are written in.
debian_mirror() {
        local uri base suite file first

        if [ -n "${LUVFIOD_MIRROR:-}" ]; then
                printf '%s\n' "$LUVFIOD_MIRROR"
                return 0
        fi
        while read -r uri _; do
                uri=${uri#\'}
                uri=${uri%\'}
                case $uri in
                */dists/*InRelease) ;;
                *) continue ;;
                esac
                base=${uri%%/dists/*}
                suite=${uri#*/dists/}
                suite=${suite%/InRelease}
                case $suite in
                */* | *-security) continue ;;
                bookworm* | trixie* | forky* | sid | stable* | testing* | unstable) ;;
                *) continue ;;
                esac
                # Third parties name their suites after Debian's too; only an archive called "debian", or a
                # snapshot of it, is the archive itself.
                case $base in
                mirror+file:*)
                        file=${base#mirror+file:}
                        first=$(awk '!/^[[:space:]]*(#|$)/ { print $1; exit }' "/${file##/}" 2>/dev/null)
                        [ -n "$first" ] || continue
                        base=${first%/}
                        ;;
                */debian | */debian/* | */debian-*) ;;
                *) continue ;;
                esac
                printf '%s\n' "$base"
                return 0
        done < <(apt-get --print-uris update 2>/dev/null)

        echo "No Debian archive in this machine's apt sources (apt-get --print-uris update names none): set LUVFIOD_MIRROR to one." >&2
        return 1
}

# Prints what this machine's apt is told about reaching archives (proxies, validity checks), as apt.conf lines.
debian_apt_options() {
        apt-config dump | grep -E \
                '^Acquire::((http|https|ftp)(::|-|")|Check-(Valid-Until|Date)|Max-ValidTime|Min-ValidTime|Retries|ForceIPv[46]|Languages)' |
                grep -vE '^Acquire::[^ ]*(::User-Agent|Dl-Limit)' || true
}
