/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "util/macro.h"

/*
 * A command line in a file: the program on the first line, then an option a line, and behind it, after
 * blanks, its value up to the end of the line, as it is. Empty lines and those that begin with # do not
 * count.
 */

/* -EBADMSG: there is no command line in it; -errno. */
int luv_qemu_config_parse(const char *text, char ***ret_argv);
int luv_qemu_config_read(const char *path, char ***ret_argv);
