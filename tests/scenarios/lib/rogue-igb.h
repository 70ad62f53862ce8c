/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

/*
 * An igb (82576) that does DMA all the time: it receives frames into a memfd, each with a number behind 14
 * bytes of header that is one higher than that of the frame before. Without an IOMMU: a device is told
 * physical addresses.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IGB_RING 256u
#define IGB_PAGE 4096u

/* In the memfd. */
typedef struct Igb {
        struct {
                uint64_t address;
                uint32_t status, unused;
        } ring[IGB_RING];
        uint8_t frames[IGB_RING][IGB_PAGE];
        uint64_t physical[IGB_RING + 1]; /* of the pages above */
        uint64_t received;               /* frames, of which the last had the number */
        int64_t last;
} Igb;

#define IGB_SIZE ((sizeof(Igb) + IGB_PAGE - 1) / IGB_PAGE * IGB_PAGE)

/* From reset to receiving. */
void igb_start(Igb *igb, void *registers);
/* Whether it still is as igb_start() left it. */
bool igb_is_as_it_was(const Igb *igb, void *registers);
/* How many frames have come that were not taken yet. */
unsigned igb_waiting(const Igb *igb);
/* Takes them. False: one is missing. */
bool igb_take(Igb *igb, void *registers);
