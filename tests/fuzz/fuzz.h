/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* What libFuzzer calls for each input; without clang, fuzz-main.c calls it for the files of the corpus. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Holds in every build: a fuzz target that cannot fail finds nothing. */
#define FUZZ_REQUIRE(condition)                                                                             \
        do {                                                                                                \
                if (!(condition))                                                                           \
                        fuzz_failed(#condition, __FILE__, __LINE__);                                        \
        } while (0)

_Noreturn void fuzz_failed(const char *what, const char *file, int line);

/* A memfd with the bytes, at offset 0; not sealed. */
int fuzz_memfd(const void *data, size_t size);
/* A 0-terminated copy. */
char *fuzz_string(const uint8_t *data, size_t size);
/* No messages on stderr but with $FUZZ_LOG set: libFuzzer's own are to be seen. */
void fuzz_quiet(void);
