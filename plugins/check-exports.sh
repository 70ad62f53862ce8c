#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# check-exports.sh PLUGIN...: each exports its description and nothing else.
set -eu

status=0
for plugin; do
        exports=$(nm -D --defined-only "$plugin" | awk '{ print $3 }')
        [ "$exports" = luvfio_plugin_v1 ] && continue
        echo "$plugin exports more, or less, than luvfio_plugin_v1: $(echo "$exports" | paste -sd " ")"
        status=1
done
exit $status
