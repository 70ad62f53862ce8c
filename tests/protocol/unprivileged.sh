#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# unprivileged.sh SIMULATED-UPDATE VMM [ARGUMENT...]: simulated-update as a user who owns nothing and may nothing. It has to
# go well, and luvfiod has to miss no permission. $LUVFIOD, $LUVFIOCTL, $LUVFIO_PLUGIN_HOST, $LUVFIO_PLUGIN_DIR and
# $LIBLUVFIO are what was built; copies are run, since the build may be where nobody else can read it.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' INT TERM

cp "$LUVFIOD" "$folder/luvfiod"
cp "$LUVFIOCTL" "$folder/luvfioctl"
cp "$LUVFIO_PLUGIN_HOST" "$folder/luvfio-plugin-host"
cp "$LUVFIO_PLUGIN_DIR/null.so" "$folder/null.so"
cp "$LIBLUVFIO" "$folder/libluvfio.so.0"
cp "$1" "$folder/simulated-update"
cp "$2" "$folder/vmm"
shift 2
mkdir "$folder/logs"
chmod -R a+rX "$folder"

export LUVFIOD="$folder/luvfiod" LUVFIOCTL="$folder/luvfioctl" LUVFIO_PLUGIN_DIR="$folder"
export LUVFIOD_ARGS="--plugin-host=$folder/luvfio-plugin-host" LD_LIBRARY_PATH="$folder" KEEP="$folder/logs"
set -- "$folder/simulated-update" "$folder/vmm" "$@"
if [ "$(id -u)" -eq 0 ]; then
        chown 65534:65534 "$folder/logs"
        set -- setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=-all --no-new-privs "$@"
fi
cd "$folder"
"$@"

if grep -E 'Operation not permitted|Permission denied' "$folder/logs/luvfiod.log"; then
        echo 'FAIL: luvfiod misses a permission'
        exit 1
fi
