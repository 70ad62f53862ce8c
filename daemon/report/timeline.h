/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "util/macro.h"

/* Where the time of an update went: CLOCK_BOOTTIME microseconds on each side, tied together at the jump. */

typedef struct TimelinePhase {
        char *name;
        char *machine; /* NULL: the host's */
        uint64_t start_usec, end_usec;
        bool incoming; /* measured by the new kernel's clock */
} TimelinePhase;

typedef enum TimelineClock {
        TIMELINE_CLOCK_NONE, /* no jump yet */
        TIMELINE_CLOCK_TSC,
        TIMELINE_CLOCK_REALTIME,
        _TIMELINE_CLOCK_MAX,
        _TIMELINE_CLOCK_INVALID = -EINVAL,
} TimelineClock;

/* The three clocks at one moment. */
typedef struct TimelineAnchor {
        /* tsc 0: no invariant TSC; tsc_khz 0: its rate is not known (yet, early in a process) */
        uint64_t boottime_usec, realtime_usec, tsc, tsc_khz;
} TimelineAnchor;

typedef struct Timeline {
        uint64_t started_realtime_usec;
        uint64_t started_usec;   /* CLOCK_BOOTTIME of the outgoing kernel */
        TimelineAnchor outgoing; /* taken just before reboot(2) */
        TimelineAnchor incoming; /* taken first thing by the new daemon */
        TimelinePhase *phases;
        size_t n_phases;
} Timeline;

void luv_timeline_done(Timeline *t);
const char *luv_timeline_clock_to_string(TimelineClock c);
TimelineClock luv_timeline_clock_from_string(const char *s);
int luv_timeline_anchor(TimelineAnchor *ret);

/* Begins a phase; the one of the same name and machine that is open ends. -ENOMEM. */
int luv_timeline_begin(Timeline *t, const char *name, const char *machine, bool incoming, uint64_t usec);
void luv_timeline_end(Timeline *t, const char *name, const char *machine, uint64_t usec);

TimelineClock luv_timeline_clock(const Timeline *t);
/* A time of the new kernel's clock on the old one's; as it is if there was no jump. */
uint64_t luv_timeline_to_outgoing(const Timeline *t, uint64_t incoming_usec);
