/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "ctl/ctl-model.h"

/*
 * An update's timeline as a picture by itself: no scripts, nothing fetched, legible on light and dark.
 * Writes to F and leaves errors to ferror().
 */
void ctl_svg_write(FILE *f, const Report *report);

/* TEXT as it may stand in an element or a quoted attribute, at most MAX characters of it (0: all). */
void ctl_svg_escape(FILE *f, const char *text, size_t max);
