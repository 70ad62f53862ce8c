/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include "machine/machine.h"

/* What machine.c and machine-registry.c share. */

#define FILE_BUCKETS 4096u

struct UserQuota {
        UserQuota *next;
        uid_t uid;
        uint64_t machines, fds, bytes;
};

struct MachineRegistry {
        sd_event *event;
        char *folder;
        MachineQuota quota;
        MachineCallbacks callbacks;
        void *userdata;
        Machine **machines; /* by name */
        size_t n_machines, n_allocated;
        uint64_t serial;
        UserQuota *users;
        MachineFd *files[FILE_BUCKETS];
};

/* The account of UID, made if it is not there. Accounts without anything go when the last machine does. */
int luv_registry_user(MachineRegistry *r, uid_t uid, UserQuota **ret);
void luv_registry_charge_machine(Machine *m, int sign);
void luv_registry_charge_fd(Machine *m, const MachineFd *f, int sign);
uint64_t luv_fd_bytes(const MachineFd *f);

int luv_registry_insert(MachineRegistry *r, Machine *m);
void luv_registry_remove(Machine *m);
uint64_t luv_registry_next_serial(MachineRegistry *r);
void luv_registry_raise_serial(MachineRegistry *r, uint64_t serial);

void luv_registry_index(MachineRegistry *r, MachineFd *f);
void luv_registry_unindex(MachineRegistry *r, MachineFd *f);
void luv_registry_remove_note(Machine *m);
