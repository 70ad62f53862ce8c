/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <sys/types.h>

#include "util/macro.h"

/* The unified control group tree. Paths are as in /proc/PID/cgroup: "/system.slice/x.service". */

/* -ESRCH: no such process; -ENODATA: it is in no unified cgroup. PID 0 is the caller. */
int luv_cgroup_of_pid(pid_t pid, char **ret);
/* The same, safe against a pid that is used again. */
int luv_cgroup_of_pidfd(int pidfd, char **ret);
/* O_PATH fd of the cgroup's folder, for *at() calls; -ENOENT. */
int luv_cgroup_open(const char *cgroup);
/*
 * The same, or the nearest cgroup above it which a process can be put in (a threaded cgroup, such as
 * libvirt's for a vCPU, takes none); its path in *ret_cgroup, which may be NULL. Memory is charged to
 * that one anyhow: threaded cgroups have no memory controller.
 */
int luv_cgroup_open_for_process(const char *cgroup, char **ret_cgroup);

/* 1 if it is frozen or about to be, by itself or by a cgroup above it; 0; -ENOENT. */
int luv_cgroup_is_frozen(const char *cgroup);
