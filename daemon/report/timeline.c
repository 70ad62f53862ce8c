/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <cpuid.h>
#include <fcntl.h>
#include <time.h>

#include "report/timeline.h"
#include "util/io.h"
#include "util/string-util.h"
#include "util/time-util.h"

static const char *const luv_timeline_clock_table[_TIMELINE_CLOCK_MAX] = {
        [TIMELINE_CLOCK_NONE] = "none",
        [TIMELINE_CLOCK_TSC] = "tsc",
        [TIMELINE_CLOCK_REALTIME] = "realtime",
};
DEFINE_STRING_TABLE(luv_timeline_clock, TimelineClock);

void luv_timeline_done(Timeline *t)
{
        for (size_t i = 0; i < t->n_phases; i++) {
                free(t->phases[i].name);
                free(t->phases[i].machine);
        }
        free(t->phases);
        *t = (Timeline) {};
}

static uint64_t read_tsc(void)
{
        uint32_t low, high;

        __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high));
        return (uint64_t) high << 32 | low;
}

/* Says the processor, or the kernel, which keeps time by it only if it trusts it (tsc=reliable). */
static bool tsc_is_invariant(void)
{
        _cleanup_free_ char *source = NULL;
        uint32_t a, b, c, d;

        if (__get_cpuid(0x80000007, &a, &b, &c, &d) && (d & (1u << 8)))
                return true;
        return luv_read_line_file(AT_FDCWD,
                                  "/sys/devices/system/clocksource/clocksource0/current_clocksource",
                                  &source) >= 0 &&
               streq(source, "tsc");
}

/*
 * The rate of the TSC. Where the processor does not say, it is measured against CLOCK_MONOTONIC_RAW, from
 * the first call of this process to the present one: 0 as long as that is too short a time.
 */
static uint64_t tsc_khz(uint64_t tsc)
{
        static uint64_t first_tsc, first_nsec;
        uint32_t a, b, c, d;
        struct timespec t;
        uint64_t nsec;

        if (__get_cpuid(0x15, &a, &b, &c, &d) && a > 0 && b > 0 && c > 0)
                return (uint64_t) c * b / a / 1000;

        if (clock_gettime(CLOCK_MONOTONIC_RAW, &t) < 0)
                return 0;
        nsec = (uint64_t) t.tv_sec * 1000000000 + (uint64_t) t.tv_nsec;
        if (first_nsec == 0) {
                first_tsc = tsc;
                first_nsec = nsec;
                return 0;
        }
        /* A short base line measures the cost of clock_gettime() rather than the rate. */
        if (nsec - first_nsec < 50000000 || tsc <= first_tsc)
                return 0;
        return (uint64_t) ((__uint128_t) (tsc - first_tsc) * 1000000 / (nsec - first_nsec));
}

int luv_timeline_anchor(TimelineAnchor *ret)
{
        TimelineAnchor a = { .boottime_usec = luv_now_usec() };

        if (tsc_is_invariant()) {
                a.tsc = read_tsc();
                a.tsc_khz = tsc_khz(a.tsc);
        }
        a.realtime_usec = luv_realtime_usec();
        *ret = a;
        return 0;
}

static TimelinePhase *find_open(Timeline *t, const char *name, const char *machine)
{
        for (size_t i = t->n_phases; i > 0; i--) {
                TimelinePhase *p = t->phases + i - 1;

                if (p->end_usec == 0 && streq(p->name, name) && streq_ptr(p->machine, machine))
                        return p;
        }
        return NULL;
}

int luv_timeline_begin(Timeline *t, const char *name, const char *machine, bool incoming, uint64_t usec)
{
        _cleanup_free_ char *n = NULL, *m = NULL;
        TimelinePhase *p;

        n = strdup(name);
        m = machine ? strdup(machine) : NULL;
        if (!n || (machine && !m))
                return -ENOMEM;
        luv_timeline_end(t, name, machine, usec);
        p = reallocarray(t->phases, t->n_phases + 1, sizeof(TimelinePhase));
        if (!p)
                return -ENOMEM;
        t->phases = p;
        t->phases[t->n_phases++] = (TimelinePhase) {
                .name = TAKE_PTR(n),
                .machine = TAKE_PTR(m),
                .start_usec = usec,
                .incoming = incoming,
        };
        return 0;
}

void luv_timeline_end(Timeline *t, const char *name, const char *machine, uint64_t usec)
{
        TimelinePhase *p = find_open(t, name, machine);

        if (p)
                p->end_usec = MAX(usec, p->start_usec);
}

/* What one kernel measured as the rate may differ by a little from the other's, not by more. */
static bool rates_agree(uint64_t a, uint64_t b)
{
        uint64_t difference = a > b ? a - b : b - a;

        return a > 0 && b > 0 && difference <= a / 100;
}

TimelineClock luv_timeline_clock(const Timeline *t)
{
        if (t->outgoing.boottime_usec == 0 || t->incoming.boottime_usec == 0)
                return TIMELINE_CLOCK_NONE;
        /* A TSC that is behind was reset on the way: it did not count the jump. */
        if (rates_agree(t->outgoing.tsc_khz, t->incoming.tsc_khz) && t->incoming.tsc > t->outgoing.tsc)
                return TIMELINE_CLOCK_TSC;
        return TIMELINE_CLOCK_REALTIME;
}

uint64_t luv_timeline_to_outgoing(const Timeline *t, uint64_t incoming_usec)
{
        uint64_t jump, base;

        switch (luv_timeline_clock(t)) {
        case TIMELINE_CLOCK_TSC:
                jump = (uint64_t) ((__uint128_t) (t->incoming.tsc - t->outgoing.tsc) * 1000 /
                                   t->outgoing.tsc_khz);
                break;
        case TIMELINE_CLOCK_REALTIME:
                /* The RTC may have set the clock back: time does not run backwards all the same. */
                jump = t->incoming.realtime_usec > t->outgoing.realtime_usec
                                       ? t->incoming.realtime_usec - t->outgoing.realtime_usec
                                       : 0;
                break;
        default:
                return incoming_usec;
        }
        base = t->outgoing.boottime_usec + jump;
        if (incoming_usec >= t->incoming.boottime_usec)
                return base + (incoming_usec - t->incoming.boottime_usec);
        return base - MIN(base, t->incoming.boottime_usec - incoming_usec);
}
