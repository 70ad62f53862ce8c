/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Prints the frequency of this time stamp counter in kHz, which is what TCG shows its guests. */

#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

static uint64_t now_ns(void)
{
        struct timespec t;

        clock_gettime(CLOCK_MONOTONIC_RAW, &t);
        return (uint64_t) t.tv_sec * 1000000000U + (uint64_t) t.tv_nsec;
}

/* One reading of both clocks, from the try in which they were closest together. */
static void sample(uint64_t *ret_tsc, uint64_t *ret_ns)
{
        uint64_t best = UINT64_MAX;

        for (int i = 0; i < 50; i++) {
                uint64_t before = __rdtsc(), ns = now_ns(), after = __rdtsc();

                if (after - before < best) {
                        best = after - before;
                        *ret_tsc = before + (after - before) / 2;
                        *ret_ns = ns;
                }
        }
}

int main(void)
{
        struct timespec wait = { .tv_nsec = 200 * 1000 * 1000 };
        uint64_t tsc[2], ns[2];

        sample(&tsc[0], &ns[0]);
        nanosleep(&wait, NULL);
        sample(&tsc[1], &ns[1]);
        printf("%.0f\n", (double) (tsc[1] - tsc[0]) * 1e6 / (double) (ns[1] - ns[0]));
        return 0;
}
