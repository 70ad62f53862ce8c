/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "util/macro.h"

/*
 * The service manager's fd store, where session fds survive this process. Without a manager
 * (no $NOTIFY_SOCKET) pushing and removing succeed and do nothing: luv_fd_store_available() tells.
 *
 * A manager whose store is full closes what it is sent and says so in its log only, so the number of stored
 * fds is kept here, against $FDSTORE, in which the manager tells FileDescriptorStoreMax=.
 */

typedef struct FdStore FdStore;

/* Takes over the fds passed at start ($LISTEN_FDS); call once, before anything opens fds. */
int luv_fd_store_new(FdStore **ret);
FdStore *luv_fd_store_free(FdStore *s);
DEFINE_CLEANUP(FdStore *, luv_fd_store_free);

bool luv_fd_store_available(FdStore *s);

/* The fd stored (or passed as a socket) under NAME, newest first, now the caller's; -ENOENT. */
int luv_fd_store_take(FdStore *s, const char *name);
/* Names of the fds that are left whose name begins with PREFIX; caller frees array and strings. */
int luv_fd_store_names(FdStore *s, const char *prefix, char ***ret);

/*
 * Stores a dup of FD under NAME and waits until the manager has it; -ENOSPC if the store is full, -ETIME if
 * the manager does not answer. A file that is stored already is not stored again.
 */
int luv_fd_store_push(FdStore *s, const char *name, int fd);
/* The same without waiting, for what is not lost if the manager does not take it. */
int luv_fd_store_send(FdStore *s, const char *name, int fd);
/* Drops all fds of NAME; the manager closes its copies asynchronously. */
int luv_fd_store_remove(FdStore *s, const char *name);
