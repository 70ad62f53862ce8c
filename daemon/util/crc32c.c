/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "util/crc32c.h"

/* The Castagnoli polynomial, bits reversed. */
#define POLYNOMIAL UINT32_C(0x82f63b78)

static uint32_t table[256];

static void make_table(void)
{
        for (uint32_t i = 0; i < 256; i++) {
                uint32_t v = i;

                for (int bit = 0; bit < 8; bit++)
                        v = v & 1 ? v >> 1 ^ POLYNOMIAL : v >> 1;
                table[i] = v;
        }
}

uint32_t luv_crc32c_extend(uint32_t crc, const void *data, size_t size)
{
        const uint8_t *p = data;

        crc = ~crc;
        if (table[1] == 0)
                make_table();
        for (size_t i = 0; i < size; i++)
                crc = crc >> 8 ^ table[(crc ^ p[i]) & 0xff];
        return ~crc;
}

uint32_t luv_crc32c(const void *data, size_t size)
{
        return luv_crc32c_extend(0, data, size);
}
