/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "agents/qemu-machine.h"

/* A domain of libvirt, by its name. Its QEMU is libvirt's: started by it from a saved image, watched by us.
 */
extern const QemuBackend luv_qemu_of_libvirt;
