/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <systemd/sd-event.h>

#include "kexec/kexec.h"
#include "luo/fd-store.h"
#include "luo/luo.h"
#include "machine/machine.h"
#include "plugin/plugin-client.h"
#include "preflight/finding.h"
#include "preflight/units.h"

/*
 * What is looked at before an update. First facts are gathered, then every check judges them: a check is a
 * function of the facts alone, all run, none hides another.
 */

typedef struct PreflightMachine {
        char *name, *unit, *reason;
        MachineState state;
        bool attached, alive, in_control_group, shares_control_group;
        size_t n_fds, n_memfds, n_missing;
        uint64_t bytes, holes;    /* of its memfds */
        uint64_t headroom;        /* until its control group's memory.max; UINT64_MAX: no limit */
        int survives;             /* the drain: 1, 0, negative: not known */
        MachineBlocker *blockers; /* its VMM's */
        size_t n_blockers;
        char *iommufd_blocker; /* as luv_iommufd_blocker(), of one of its iommufds; NULL: none */
} PreflightMachine;

typedef struct PreflightDevice {
        char *machine, *address;
        char *plugin, *promise; /* NULL: none answers for it */
        char *reason;           /* why the plugin could not be asked */
        uint64_t preserved;     /* as luv_fd_preserved() */
        Findings findings;      /* the plugin's */
} PreflightDevice;

typedef struct PreflightProcess {
        pid_t pid;
        char *name, *unit;
        char *holds; /* KVM or VFIO */
} PreflightProcess;

typedef struct PreflightInhibitor {
        char *who, *why;
} PreflightInhibitor;

typedef struct PreflightFacts {
        bool simulated;
        int luo; /* as luv_luo_probe() */

        bool kernel_given, kernel_staged;
        int kernel_error; /* -ENOEXEC: no kernel */
        char *kernel_reason;
        KexecImage kernel;
        char *initrd_reason; /* NULL: it will do, or there is none */
        char *cmdline;
        int running_abi_error;
        char *running_abi;
        int kexec_loaded; /* 1, 0, -errno; loaded by somebody else than us */

        char *lost; /* why what the last kernel handed over could not be read */

        uint64_t memory_available, memory_reserve;

        PreflightMachine *machines;
        size_t n_machines;
        PreflightDevice *devices;
        size_t n_devices;
        PreflightProcess *processes; /* that hold VFIO or KVM and are no machine's */
        size_t n_processes;
        PreflightInhibitor *inhibitors;
        size_t n_inhibitors;

        bool store_available;
        uint64_t store_max, store_needed; /* max 0: not known */
        int history_error;
        uint64_t history_free; /* bytes */
        char **lost_stores;    /* units whose fd stores would be lost */
        bool drain_target_missing;
        size_t n_iommu_groups;
        bool may_noiommu; /* have devices without an IOMMU: CAP_SYS_RAWIO */
} PreflightFacts;

void luv_preflight_facts_done(PreflightFacts *f);
int luv_preflight_add_inhibitor(PreflightFacts *f, const char *who, const char *why);

/* The checks themselves. */
void luv_preflight_judge(const PreflightFacts *f, Findings *findings);

/* One a file. */
void luv_check_luo(const PreflightFacts *f, Findings *r);
void luv_check_kernel(const PreflightFacts *f, Findings *r);
void luv_check_cmdline(const PreflightFacts *f, Findings *r);
void luv_check_abi(const PreflightFacts *f, Findings *r);
void luv_check_loaded(const PreflightFacts *f, Findings *r);
void luv_check_memory(const PreflightFacts *f, Findings *r);
void luv_check_machines(const PreflightFacts *f, Findings *r);
void luv_check_processes(const PreflightFacts *f, Findings *r);
void luv_check_inhibitors(const PreflightFacts *f, Findings *r);
void luv_check_devices(const PreflightFacts *f, Findings *r);
void luv_check_fd_store(const PreflightFacts *f, Findings *r);
void luv_check_history(const PreflightFacts *f, Findings *r);
void luv_check_stores(const PreflightFacts *f, Findings *r);
void luv_check_drain(const PreflightFacts *f, Findings *r);
void luv_check_iommu(const PreflightFacts *f, Findings *r);

typedef struct PreflightConfig {
        sd_event *event;
        Luo *luo;
        FdStore *store;
        PluginManager *plugins;
        Units *units; /* NULL: simulated */
        MachineRegistry *machines;
        bool simulated;
        const char *state_dir;
        bool kernel_staged;
        int kernel_fd, initrd_fd; /* negative: none; stay the caller's */
        const char *cmdline;      /* NULL: the running kernel's */
        uint64_t deadline;
} PreflightConfig;

/*
 * FACTS are the callee's to change (inhibitors are added there), before luv_preflight_judge(). Called once,
 * never from within the call.
 */
typedef struct Preflight Preflight;
typedef void (*PreflightDone)(int error, PreflightFacts *facts, void *userdata);
int luv_preflight_start(const PreflightConfig *config, PreflightDone done, void *userdata, Preflight **ret);
Preflight *luv_preflight_free(Preflight *p);
DEFINE_CLEANUP(Preflight *, luv_preflight_free);

/* MemAvailable of /proc/meminfo and the part of it that must stay free. */
int luv_memory_available(uint64_t *ret, uint64_t *ret_reserve);
/* What CGROUP and those above it may still charge; UINT64_MAX: no limit. */
int luv_memory_headroom(const char *cgroup, uint64_t *ret);
