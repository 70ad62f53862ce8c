/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "report/timeline.h"
#include "util/macro.h"

/*
 * What the next run of the daemon has to know if this one ends in the middle of an update:
 * RUNTIME/update.json, gone with the boot. Before the jump it says what has to be undone, after it what is
 * done already.
 */

typedef struct JournalMachine {
        char *name, *state, *session;
} JournalMachine;

typedef struct UpdateJournal {
        char *boot_id, *update_id, *state;
        bool incoming; /* written after the jump */
        char **frozen; /* control groups */
        char **units;  /* stopped by the drain */
        bool drained;
        bool image;      /* loaded by us */
        char **finished; /* machines that run again */
        TimelineAnchor anchor;
        JournalMachine *machines;
        size_t n_machines;
} UpdateJournal;

#define LUVFIO_JOURNAL_FILE "update.json"

int luv_update_journal_write(const char *runtime_dir, const UpdateJournal *j);
/* -ENOENT: there is none. -EBADMSG with a sentence. */
int luv_update_journal_read(const char *runtime_dir, UpdateJournal **ret, char **ret_reason);
void luv_update_journal_remove(const char *runtime_dir);
UpdateJournal *luv_update_journal_free(UpdateJournal *j);
DEFINE_CLEANUP(UpdateJournal *, luv_update_journal_free);

/* This boot's id, 32 hex digits. */
int luv_boot_id(char **ret);
