/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <time.h>

#include "util/macro.h"

static inline uint64_t luv_clock_usec(clockid_t clock)
{
        struct timespec t;

        (void) clock_gettime(clock, &t);
        return (uint64_t) t.tv_sec * USEC_PER_SEC + (uint64_t) t.tv_nsec / NSEC_PER_USEC;
}

/* CLOCK_BOOTTIME, the clock of deadlines and phases. */
static inline uint64_t luv_now_usec(void)
{
        return luv_clock_usec(CLOCK_BOOTTIME);
}

static inline uint64_t luv_realtime_usec(void)
{
        return luv_clock_usec(CLOCK_REALTIME);
}

/* What is left until DEADLINE (0 if it is past); UINT64_MAX for the deadline 0, which means none. */
static inline uint64_t luv_usec_left(uint64_t deadline)
{
        uint64_t now = luv_now_usec();

        if (deadline == 0)
                return UINT64_MAX;
        return deadline > now ? deadline - now : 0;
}
