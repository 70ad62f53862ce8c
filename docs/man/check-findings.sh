#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# check-findings.sh LUVFIOD.8 PREFLIGHT: the manual explains each finding of the checks, and no other.
set -eu

manual=$1 preflight=$2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

cat "$preflight"/check-*.c 2>/dev/null | grep -Eo 'luv_(blocker|warning|note|findings_add)\([^,]*, "[a-z-]+"' | cut -d'"' -f2 | sort -u >"$dir/code"
[ -s "$dir/code" ] || exit 77
sed -n '/^\.Sh FINDINGS/,/^\.Sh DIAGNOSTICS/s/^\.It Sy //p' "$manual" | sed 's/ , /\n/g' | sort >"$dir/manual"

if [ -n "$(uniq -d "$dir/manual")" ]; then
        echo "explained twice: $(uniq -d "$dir/manual" | tr '\n' ' ')" >&2
        exit 1
fi
diff -u --label "$preflight" --label "$manual" "$dir/code" "$dir/manual"
