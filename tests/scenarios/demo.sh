#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# scenario: the demo, as the README has it
# alone: yes
# timeout: 900

exec "$(dirname "$0")/../demo" --out "$LUV_RUN/demo"
