/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sys/types.h>

#include "util/macro.h"

/* polkit's agent for terminals, which asks for a password while a call waits. 0: none runs. */
typedef pid_t Agent;

/* Does nothing where there is no terminal or no agent: luvfiod's refusal then says what is missing. */
void ctl_agent_start(Agent *a);
void ctl_agent_stop(Agent *a);
