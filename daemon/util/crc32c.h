/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "util/macro.h"

/* CRC-32C (Castagnoli) as iSCSI and ext4 have it: of "123456789" it is 0xe3069283. */
uint32_t luv_crc32c(const void *data, size_t size);
/* Of what CRC is of, and then DATA; 0 is the CRC of nothing. */
uint32_t luv_crc32c_extend(uint32_t crc, const void *data, size_t size);
