#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# check-catalog.sh MESSAGES.H CATALOG: every message id has its entry, every entry an id, none is there twice, and
# journalctl can read the catalog.
set -eu

messages=$1 catalog=$2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
fault=0

# An id is a string of 32 hex digits in the header, and the second word of a line that begins with -- in the catalog.
grep -Eo '"[0-9a-f]{32}"' "$messages" | tr -d '"' | sort >"$dir/messages"
sed -n 's/^-- \([^ ]*\)$/\1/p' "$catalog" | sort >"$dir/catalog"

[ -s "$dir/messages" ] || {
        echo "$messages: no message id found" >&2
        fault=1
}
for file in messages catalog; do
        uniq -d "$dir/$file" | while read -r id; do
                echo "$id is in the $file twice" >&2
        done
        [ -z "$(uniq -d "$dir/$file")" ] || fault=1
done
for id in $(comm -23 "$dir/messages" "$dir/catalog"); do
        echo "$catalog: no entry for $id ($(grep "$id" "$messages" | awk '{ print $2; exit }'))" >&2
        fault=1
done
for id in $(comm -13 "$dir/messages" "$dir/catalog"); do
        echo "$messages: no message $id, but the catalog explains it" >&2
        fault=1
done

if command -v journalctl >/dev/null; then
        mkdir -p "$dir/root/usr/lib/systemd/catalog" "$dir/root/var/lib/systemd/catalog"
        cp "$catalog" "$dir/root/usr/lib/systemd/catalog/luvfiod.catalog"
        journalctl --root="$dir/root" --update-catalog >"$dir/log" 2>&1 || {
                cat "$dir/log" >&2
                fault=1
        }
        [ ! -s "$dir/log" ] || {
                cat "$dir/log" >&2
                fault=1
        }
fi

exit "$fault"
