/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "util/macro.h"

/* How things look. Nothing that came from outside reaches a terminal but through ctl_clean(). */

typedef struct Terminal {
        FILE *f;
        bool live; /* a terminal, on which lines can be painted over */
        bool colour;
        bool unicode;
        unsigned columns;
} Terminal;

void ctl_terminal_init(Terminal *ret, FILE *f);

typedef enum Style {
        STYLE_NONE,
        STYLE_BOLD,
        STYLE_DIM,
        STYLE_GOOD,
        STYLE_WARN,
        STYLE_BAD,
        _STYLE_MAX,
} Style;

/* Empty strings where there is no colour. */
const char *ctl_style(const Terminal *t, Style s);
const char *ctl_style_off(const Terminal *t, Style s);

/* A copy without anything that moves a cursor or turns text around; NULL if out of memory. NULL gives "". */
char *ctl_clean(const char *s);
/* The number of columns that a clean string takes. */
size_t ctl_width(const char *s);

#define CTL_FORMAT_MAX 48
/* All return BUF. Three digits are enough for people. */
char *ctl_format_usec(char buf[static CTL_FORMAT_MAX], uint64_t usec);
char *ctl_format_bytes(char buf[static CTL_FORMAT_MAX], uint64_t bytes);
char *ctl_format_realtime(char buf[static CTL_FORMAT_MAX], uint64_t usec);

typedef struct Cell {
        char *text;
        Style style;
} Cell;

typedef struct Table {
        const char *const *titles; /* clean */
        size_t n_columns;
        uint32_t right; /* columns that are set flush right, a bit each */
        Cell *cells;
        size_t n_cells;
        bool failed; /* out of memory */
} Table;

/* Adds the next cell; NULL and "" are shown as a dash. */
void ctl_table_add(Table *t, const char *text, Style style);
_printf_(3, 4) void ctl_table_addf(Table *t, Style style, const char *format, ...);
/* Columns in which every row has a dash are left out. -ENOMEM. */
int ctl_table_print(const Table *t, const Terminal *terminal);
void ctl_table_done(Table *t);
