/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef LUVFIO_PLUGIN_H
#define LUVFIO_PLUGIN_H

/*
 * The device plugin ABI of luvfiod.
 *
 * A plugin is a shared object NAME.so which exports one symbol and nothing else:
 *
 *         const struct luvfio_plugin luvfio_plugin_v1 = { ... };
 *
 * luvfio-plugin-host loads it, checks size, ABI, name and capabilities, and calls its operations. Each
 * operation runs in a fresh process that ends with it: a plugin keeps nothing in memory from one operation
 * to the next, may block, may be killed at any moment, and several of its operations (for different
 * devices) can run at the same time. What has to be known after the jump goes into the plan.
 *
 * Rules for all operations:
 *
 * - They return 0 (or what is said below) or a negative errno, and then should have said why in a sentence
 *   with set_reason(): that sentence is what the operator reads, after the plugin's and the device's name.
 * - Each has a deadline, see time_left(); the process is killed at the deadline.
 * - All pointers belong to the host and are valid until the operation returns; nothing is to be freed.
 * - Texts are ASCII, without a newline; anything else in them is shown as `?`.
 * - The device handle stands for one PCI function. The plugin acts on this function through the callbacks
 *   and touches nothing else on the host.
 *
 * How the ABI grows: structures get new members at their end only, and `size` says which there are. A
 * callback that was added later is used only if LUVFIO_HOST_HAS(host, member). A change that cannot be made
 * in this way gets a new LUVFIO_PLUGIN_ABI and a new symbol name.
 */

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LUVFIO_PLUGIN_ABI 1u

/* What a plan may have at most, with its final 0 byte. */
#define LUVFIO_PLAN_SIZE 16384u

#if defined(__GNUC__)
#define LUVFIO_PRINTF(format, first) __attribute__((__format__(__printf__, format, first)))
#define LUVFIO_PLUGIN_EXPORT __attribute__((__visibility__("default")))
#else
#define LUVFIO_PRINTF(format, first)
#define LUVFIO_PLUGIN_EXPORT
#endif

/* One PCI function. */
struct luvfio_device;

/* What happens to the device over the jump; the higher, the more verify() holds it against. */
enum luvfio_promise {
        LUVFIO_PROMISE_RESET = 1,   /* it is reset; identity and layout stay */
        LUVFIO_PROMISE_RUNNING = 2, /* it keeps its state and its DMA goes on; interrupts are lost */
        LUVFIO_PROMISE_LATCHED = 3  /* as RUNNING, and interrupts of the blackout arrive afterwards */
};

/* What the kernel preserves of a device in a live update, as preserved() has it. */
#define LUVFIO_PRESERVED_OWNER ((uint64_t) 1)       /* nobody else can open it afterwards */
#define LUVFIO_PRESERVED_STATE ((uint64_t) 2)       /* it is not reset: registers, configuration space */
#define LUVFIO_PRESERVED_DMA ((uint64_t) 4)         /* bus mastering stays on, its DMA goes on */
#define LUVFIO_PRESERVED_IOMMU ((uint64_t) 8)       /* what it is attached to translates without a gap */
#define LUVFIO_PRESERVED_INTERRUPTS ((uint64_t) 16) /* those of the blackout arrive afterwards */
#define LUVFIO_PRESERVED_SRIOV ((uint64_t) 32)      /* its virtual functions stay */

enum luvfio_severity {
        LUVFIO_NOTE = 0,    /* good to know */
        LUVFIO_WARNING = 1, /* the update works, but ... */
        LUVFIO_BLOCKER = 2  /* no update while this is so */
};

/* As in syslog(3). */
enum luvfio_log_level {
        LUVFIO_LOG_ERR = 3,
        LUVFIO_LOG_WARNING = 4,
        LUVFIO_LOG_INFO = 6,
        LUVFIO_LOG_DEBUG = 7
};

/* One registered handler of one interrupt. Stops and hands back what is not 0. */
typedef int (*luvfio_interrupt_fn)(void *userdata, unsigned irq, const char *handler);

/*
 * What the host does for the plugin. All times are in microseconds. PATH is relative to the device's folder
 * in sysfs, without `..` (-EINVAL), and no link is followed (-EXDEV: it is there, and is one). Errors are
 * those of the system call unless said otherwise; -ENODEV: the device is not there.
 */
struct luvfio_host {
        size_t size;

        /* "0000:03:00.0" */
        const char *(*address)(const struct luvfio_device *device);

        /* What is left until the operation's deadline; 0 if it is past. */
        uint64_t (*time_left)(const struct luvfio_device *device);

        /* 1 under `luvfiod --simulate`, where no device need exist; else 0. */
        int (*simulated)(const struct luvfio_device *device);

        /* Where the plugin's configuration is if there is one, usually /etc/luvfiod/NAME.json. */
        const char *(*config_file)(const struct luvfio_device *device);

        /* SIZE bytes of the configuration space, little endian as they are there. -ENODATA: it is shorter.
         */
        int (*config_read)(struct luvfio_device *device, unsigned offset, void *data, size_t size);
        int (*config_write)(struct luvfio_device *device, unsigned offset, const void *data, size_t size);

        /* The same of the bridge LEVEL above the device, 1 being the one it is plugged into; -ENOENT: none.
         */
        int (*bridge_read)(struct luvfio_device *device, unsigned level, unsigned offset, void *data,
                           size_t size);

        /*
         * An attribute, as a string without the newline at its end; returns its length. -EFBIG: it does not
         * fit into SIZE with its 0 byte. -ENOENT: this kernel or device does not have it.
         */
        int (*attr_read)(struct luvfio_device *device, const char *path, char *value, size_t size);
        int (*attr_write)(struct luvfio_device *device, const char *path, const char *value);

        /* The same of the kernel: PATH is below /sys/kernel, as in "liveupdate/abi". */
        int (*kernel_read)(struct luvfio_device *device, const char *path, char *value, size_t size);

        /* The driver the device is bound to; -ENOENT: to none. */
        int (*driver)(struct luvfio_device *device, char *name, size_t size);

        /* Which driver may bind from now on, whatever its ids; NULL: as usual again. */
        int (*driver_override)(struct luvfio_device *device, const char *driver);

        /* These return when the driver's probe or remove has returned. */
        int (*bind)(struct luvfio_device *device, const char *driver);
        int (*unbind)(struct luvfio_device *device); /* 0 if it was not bound */
        int (*probe)(struct luvfio_device *device);  /* whichever driver matches */

        /*
         * Wait until PATH exists ("" is the device itself), or until the device is bound to DRIVER, at most
         * TIMEOUT and never past the deadline. -ETIME.
         */
        int (*wait_path)(struct luvfio_device *device, const char *path, uint64_t timeout);
        int (*wait_driver)(struct luvfio_device *device, const char *driver, uint64_t timeout);

        /*
         * Every handler that the kernel has registered for the device: those which name it, as in
         * "vfio-intx(0000:03:00.0)", and those on any of its MSI or MSI-X vectors.
         */
        int (*interrupts)(struct luvfio_device *device, luvfio_interrupt_fn fn, void *userdata);

        /* Why the operation fails; the last one counts. Returns ERROR. */
        int (*set_reason)(struct luvfio_device *device, int error, const char *format, ...)
                        LUVFIO_PRINTF(3, 4);

        /*
         * preflight() only. ID is stable and machine readable ("driver-not-vfio"); REMEDY says what to do,
         * or is NULL; the rest says what is the matter. Returns 0, or -E2BIG after 32 findings.
         */
        int (*add_finding)(struct luvfio_device *device, enum luvfio_severity severity, const char *id,
                           const char *remedy, const char *format, ...) LUVFIO_PRINTF(5, 6);

        /* To the journal, with the plugin's and the device's name. */
        void (*log)(const struct luvfio_device *device, enum luvfio_log_level level, const char *format, ...)
                        LUVFIO_PRINTF(3, 4);

        /*
         * LUVFIO_PRESERVED_*: what this kernel preserves of the device as its VMM uses it, in the kernel's
         * own words (VFIO_DEVICE_FEATURE_LIVEUPDATE, by the file that the VMM handed over). What is not
         * preserved is as after a reset. Old kernel only. -ENODATA: the kernel does not say.
         */
        int (*preserved)(struct luvfio_device *device, uint64_t *ret);
};

#define LUVFIO_HOST_HAS(host, member)                                                                       \
        ((host)->size >= offsetof(struct luvfio_host, member) + sizeof((host)->member))

/*
 * The operations; all must be there. "Old kernel" and "new kernel": before and after the jump.
 */
struct luvfio_plugin_ops {
        size_t size;

        /*
         * Whether the plugin answers for the device: 0 no, else a score of 1 to 1000, and the highest of all
         * plugins wins. General plugins take low scores, those for one model 100 and more. *PROMISE: what
         * will happen to the device over the jump, which must be what this kernel can do.
         * Old kernel, at any time, machine running. Changes nothing. Should take milliseconds.
         */
        int (*match)(const struct luvfio_host *host, struct luvfio_device *device,
                     enum luvfio_promise *promise);

        /*
         * What speaks against an update now, with add_finding(): all of it, not just the first. An error
         * means that it could not be found out, and blocks the update too.
         * Old kernel, at any time, machine running. Changes nothing.
         */
        int (*preflight)(const struct luvfio_host *host, struct luvfio_device *device);

        /*
         * 0: the device's interrupts are off, as the device itself and the kernel have it, and it can
         * survive the jump. -EBUSY: an interrupt is on; the reason names its type (INTx, MSI, MSI-X).
         * Old kernel, vCPUs stopped: this is part of the blackout. Changes nothing.
         */
        int (*quiesced)(const struct luvfio_host *host, struct luvfio_device *device);

        /*
         * What rebind(), verify() and recover() will have to know, as text of the plugin's own, in PLAN
         * (SIZE bytes, 0-terminated). It may be read by a later version of the plugin, or by an earlier one
         * after a rollback: give it a version.
         * Old kernel, after quiesced() and under the same conditions. Changes nothing.
         */
        int (*plan)(const struct luvfio_host *host, struct luvfio_device *device, char *plan, size_t size);

        /*
         * Brings the device under its driver, ready for the VMM. It may find it unbound, bound already
         * (then it is done) or under a wrong driver. If this fails the machine is stranded and the device
         * is left as it is.
         * New kernel, once, vCPUs stopped: part of the blackout.
         */
        int (*rebind)(const struct luvfio_host *host, struct luvfio_device *device, const char *plan);

        /*
         * 0: it is the device of the plan, and nothing more happened to it than was promised.
         * New kernel, after rebind(), before the VMM gets its fds. Changes nothing.
         */
        int (*verify)(const struct luvfio_host *host, struct luvfio_device *device, const char *plan);

        /*
         * Brings the device of a machine that was given up into a safe state: no DMA, no interrupts, and no
         * driver, until the operator binds one. May be called for a device in any state, and again.
         * New kernel, the machine's session is finished, no VMM has the device.
         */
        int (*recover)(const struct luvfio_host *host, struct luvfio_device *device, const char *plan);
};

/* Capabilities; a bit that the host does not know makes it refuse the plugin. */
#define LUVFIO_CAPABILITY_NO_DEVICE ((uint64_t) 1) /* operations work for devices that are not in sysfs */

struct luvfio_plugin {
        size_t size;      /* sizeof(struct luvfio_plugin) */
        unsigned abi;     /* LUVFIO_PLUGIN_ABI */
        const char *name; /* as the file's, without .so: a-z, 0-9 and -, at most 32 */
        uint64_t capabilities;
        const struct luvfio_plugin_ops *ops;
};

extern LUVFIO_PLUGIN_EXPORT const struct luvfio_plugin luvfio_plugin_v1;

#ifdef __cplusplus
}
#endif

#endif
