/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "ctl/ctl-client.h"

/* The commands. They print what they have to say, errors too. */
ExitCode ctl_run(Ctl *c);

/* In files of their own: */
ExitCode ctl_update(Ctl *c); /* check's elder brothers stage and update */
ExitCode ctl_monitor(Ctl *c);
ExitCode ctl_inhibit(Ctl *c);
