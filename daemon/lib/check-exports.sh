#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# check-exports.sh LIBRARY MAP HEADER: the library exports what the map lists, and the header declares just that.
set -eu

library=$1 map=$2 header=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

nm -D --defined-only "$library" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' | sort >"$work/exported"
sed -n 's/^ *\(luvfio_[a-z0-9_]*\);$/\1/p' "$map" | sort >"$work/listed"
sed -n 's/^[a-z].*[ *]\(luvfio_[a-z0-9_]*\)(.*/\1/p' "$header" | sort >"$work/declared"

[ -s "$work/listed" ] || { echo "$map lists nothing"; exit 1; }
diff -u "$work/listed" "$work/exported" || { echo "exports of $library differ from $map"; exit 1; }
diff -u "$work/listed" "$work/declared" || { echo "declarations in $header differ from $map"; exit 1; }
