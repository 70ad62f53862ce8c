/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "report/report.h"

/*
 * Past updates: a JSON file each in STATE_DIR/history, the name begins with the time so that they sort. The
 * oldest are removed when there are more than LUVFIO_HISTORY_MAX.
 */

#define LUVFIO_HISTORY_MAX 100u

/* Makes the folder if it is not there. -ENOSPC and the like: the report is lost, nothing else is. */
int luv_history_write(const char *state_dir, const Report *r);
/* Newest first, at most MAX; what cannot be read is left out with a log line. */
int luv_history_read(const char *state_dir, size_t max, Report ***ret, size_t *ret_n);
/* -ENOENT: no update of that id (NULL: none at all). */
int luv_history_find(const char *state_dir, const char *update_id, Report **ret);
void luv_history_free(Report **reports, size_t n);
/* Bytes that a write needs at most, for the check of the disk. */
#define LUVFIO_HISTORY_BYTES_MAX ((uint64_t) 4 * 1024 * 1024)
