/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef LUVFIO_LUVFIO_H
#define LUVFIO_LUVFIO_H

/*
 * libluvfio: how a VMM takes part in a live update of the host kernel.
 *
 * One `struct luvfio` stands for one machine. Its life, seen from the VMM:
 *
 *     luvfio_new → luvfio_register ─┬─ state running: a machine that luvfiod did not know, or runs already
 *                                   │      luvfio_preserve guest RAM, iommufd, VFIO devices; run vCPUs
 *                                   └─ state restoring or resuming: it came over a jump
 *                                          wait for `resume`, luvfio_retrieve everything, rebuild what the
 *                                          outcomes oblige to, run vCPUs, luvfio_resumed
 *
 * and in an update: `prepare` → luvfio_prepared, `quiesce` → luvfio_quiesced, `commit` → luvfio_committed,
 * then the machine's process is gone, or `abort` comes → luvfio_resumed. docs/vmm-guide.md tells it at
 * length.
 *
 * Loop: the caller's. Poll luvfio_get_fd() for reading, call luvfio_process() when it is readable; callbacks
 * are called from there and from nowhere else. (Or: luvfio_attach_event().) luvfio_process() never waits.
 * The functions that speak to luvfiod (register, preserve, ..., withdraw) wait for its answer, up to
 * luvfio_set_timeout(); they may be called from callbacks.
 *
 * Lost connections: the library connects again by itself for as long as it takes. A connection lost in an
 * update before luvfio_committed() was called means that the update is over for this machine: `abort` is
 * called at once. After that only luvfiod's word counts: `abort` is called when luvfiod says so, and nothing
 * else may start the vCPUs again.
 *
 * Errors: 0 (or more, where said so) is success, negative is -errno; luvfio_get_error() then has the text.
 *     -ENOTCONN    luvfiod cannot be reached; nothing was done
 *     -ECONNRESET  the connection was lost during the call: it may or may not have been done
 *     -ETIMEDOUT   no answer in time: as above
 *     -EINVAL      a parameter; a name that breaks the rules (InvalidName)
 *     -ESRCH       luvfiod knows no such machine (NoSuchMachine)
 *     -EEXIST      another's machine has the name (MachineExists)
 *     -EPERM       the machine is another's: the secret is missing or wrong (NotOwner); access denied
 *     -EPROTO      not allowed in the state the machine is in (WrongState)
 *     -EDQUOT      too many machines, fds, bytes (QuotaExceeded)
 *     -EOPNOTSUPP  an fd that cannot be preserved, or is not of the kind named (UnsupportedFileDescriptor)
 *     -EBADF       not an open fd (MissingFileDescriptor)
 *     -ENOTUNIQ    the same file under another name (DuplicateFileDescriptor)
 *     -ENOENT      no fd of that name (NoSuchFileDescriptor)
 *     -EIO         the kernel did not give the fd back (RetrieveFailed)
 *     -ESTALE      the machine is stranded (Stranded)
 *     -EBADMSG     luvfiod's answer makes no sense
 *     -EREMOTEIO   an error that this version of the library does not know
 *
 * Threads: a `struct luvfio` is used by one thread at a time. Nothing is global. Times are microseconds of
 * CLOCK_BOOTTIME. fds are close-on-exec. Strings that are returned belong to the library and are valid until
 * the next call with the same object, unless said otherwise; strings that are passed in are copied.
 */

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct luvfio;
struct sd_event;

/* What a file descriptor is. */
enum luvfio_kind {
        LUVFIO_KIND_MEMFD,   /* guest RAM: a memfd (shmem, unlinked, no hugetlb) */
        LUVFIO_KIND_IOMMUFD, /* an open /dev/iommu */
        LUVFIO_KIND_VFIO,    /* an open /dev/vfio/devices/vfioN */
        LUVFIO_KIND_STATE    /* the VMM's own state, written while the vCPUs stand: a memfd */
};

/* What becomes of a file descriptor over the jump. */
enum luvfio_outcome {
        LUVFIO_OUTCOME_PRESERVED, /* the same object, as it was */
        LUVFIO_OUTCOME_RESET,   /* the device was reset, the fd is as freshly opened: bind, attach, set up */
        LUVFIO_OUTCOME_REBUILT, /* not there: open and fill a new one (luvfio_retrieve says -ENOENT) */
        LUVFIO_OUTCOME_RUNNING  /* the device ran on, its DMA never stopped: bind, attach, leave it as it is
                                 */
};

enum luvfio_state {
        LUVFIO_STATE_RUNNING,   /* vCPUs run, no update concerns the machine */
        LUVFIO_STATE_PREPARING, /* vCPUs run, `prepare` is not answered */
        LUVFIO_STATE_PREPARED,  /* vCPUs run, guest RAM is preserved */
        LUVFIO_STATE_QUIESCING, /* `quiesce` is not answered */
        LUVFIO_STATE_QUIESCED,  /* vCPUs stand, device interrupts are off */
        LUVFIO_STATE_COMMITTED, /* so, and only luvfiod's word lets them run again */
        LUVFIO_STATE_ABORTING,  /* `abort` is not answered */
        LUVFIO_STATE_RESTORING, /* after the jump: not yet ready to be retrieved */
        LUVFIO_STATE_RESUMING,  /* after the jump: retrieve */
        LUVFIO_STATE_STRANDED   /* after the jump: could not be brought back, nothing of it was touched */
};

/* A file descriptor that luvfiod holds for the machine. Fields may be added at the end. */
struct luvfio_fd {
        const char *name;
        enum luvfio_kind kind;
        enum luvfio_outcome outcome;
        uint64_t token;     /* in the kernel's live update; for people */
        uint64_t size;      /* bytes, of a memfd; else 0 */
        const char *device; /* PCI address, of a VFIO device; else NULL */
};

/* What speaks against a live update of the machine, for people. Fields may be added at the end. */
struct luvfio_blocker {
        const char *message; /* a sentence without a full stop, at most 1024 bytes */
        const char *remedy;  /* what to do about it, at most 1024 bytes; or NULL */
};

/* What comes with an event. Valid during the callback. Fields may be added at the end. */
struct luvfio_event {
        enum luvfio_state state; /* of the machine, with this event */
        const char *update_id;   /* 128 bits in hex, or NULL */
        uint64_t remaining_usec; /* time left to answer, UINT64_MAX if there is no limit */
        const char *reason;      /* why, for people: of abort; else NULL */
};

/*
 * Callbacks, each may be NULL. Set `size` to sizeof(struct luvfio_handlers): a library newer than the
 * program then knows how much of it there is.
 *
 * A callback may answer at once, or note what is to be done and answer later from the loop.
 */
struct luvfio_handlers {
        size_t size;

        /* Connected, for the first time or again. Compare luvfio_list_fds() with what it should hold: a
         * luvfiod that lost its memory has nothing, and luvfio_preserve() is to be called again. */
        void (*attached)(struct luvfio *l, const struct luvfio_event *event, void *userdata);

        /* The connection is lost, or luvfiod is back and refuses the machine; the library goes on
         * trying. `abort` follows where it must. */
        void (*lost)(struct luvfio *l, const char *reason, void *userdata);

        /* vCPUs run. Preserve what is new or has changed, then luvfio_prepared(). */
        void (*prepare)(struct luvfio *l, const struct luvfio_event *event, void *userdata);

        /* Stop vCPUs, turn device interrupts off, preserve the state, then luvfio_quiesced(). */
        void (*quiesce)(struct luvfio *l, const struct luvfio_event *event, void *userdata);

        /* luvfio_committed(), and from then on nothing but wait. */
        void (*commit)(struct luvfio *l, const struct luvfio_event *event, void *userdata);

        /* The update was given up: turn interrupts on and let vCPUs run if they stand, then
         * luvfio_resumed(). Can come in any state and more than once. */
        void (*abort)(struct luvfio *l, const struct luvfio_event *event, void *userdata);

        /* After the jump: luvfio_retrieve() works now. Can come again after a lost connection: where vCPUs
         * run already, only luvfio_resumed() is called again. */
        void (*resume)(struct luvfio *l, const struct luvfio_event *event, void *userdata);

        /* After luvfio_resumed(): nothing of the update is left. Where the connection was lost meanwhile, it
         * comes when that is back. */
        void (*finished)(struct luvfio *l, const struct luvfio_event *event, void *userdata);
};

/*
 * An object for the machine of that name (1 to 48 of A-Z a-z 0-9 _ . -, first a letter or digit; unique on
 * the host). Connects to nothing yet. -EINVAL, -ENOMEM, -EMFILE.
 */
int luvfio_new(struct luvfio **ret, const char *machine);
struct luvfio *luvfio_ref(struct luvfio *l);
/* NULL is allowed; returns NULL. The last one closes the connections: that is not a withdrawal. */
struct luvfio *luvfio_unref(struct luvfio *l);

/* Before luvfio_register(): callbacks and what they get; -EINVAL if handlers->size makes no sense. */
int luvfio_set_handlers(struct luvfio *l, const struct luvfio_handlers *handlers, void *userdata);
/* Path of luvfiod's socket. Default: $LUVFIO_SOCKET, else /run/luvfiod/org.luvfio.Machine. */
int luvfio_set_socket(struct luvfio *l, const char *path);
/* Program and version, for people; at most 1024 bytes. */
int luvfio_set_vmm(struct luvfio *l, const char *vmm);
/* How long a call waits for its answer, in microseconds, not 0. Default: 90 s. */
int luvfio_set_timeout(struct luvfio *l, uint64_t usec);

/*
 * Secret: proves that the machine is this VMM's, where after a restart the VMM runs in another systemd unit;
 * under one and the same unit none is needed. luvfio_register() gets one, the same every time.
 * luvfio_load_secret() before luvfio_register() and luvfio_save_secret() after it keep it in a file, which
 * has to survive the jump: created for its owner alone (0600), replaced as a whole, on disk when the call
 * returns. load: -ENOENT if there is no file, -EBADMSG if it holds something else. get: NULL before
 * luvfio_register().
 */
const char *luvfio_get_secret(struct luvfio *l);
int luvfio_set_secret(struct luvfio *l, const char *secret);
int luvfio_load_secret(struct luvfio *l, const char *path);
int luvfio_save_secret(struct luvfio *l, const char *path);

/*
 * Makes the machine known, or takes it up again, and starts to listen for events. On success the state and
 * the list of fds can be asked for. A luvfiod that ends before it has answered is asked again, for as long
 * as a call waits. On failure nothing is tried in the background; call it again.
 */
int luvfio_register(struct luvfio *l);

/* The state of the machine as last heard or caused by a call; -ENODATA before luvfio_register(). */
int luvfio_get_state(struct luvfio *l);
const char *luvfio_state_to_string(enum luvfio_state state);
const char *luvfio_kind_to_string(enum luvfio_kind kind);
const char *luvfio_outcome_to_string(enum luvfio_outcome outcome);
/* How many jumps the machine has made. */
uint64_t luvfio_get_generation(struct luvfio *l);
/* 1 while connected and listening, else 0. */
int luvfio_is_attached(struct luvfio *l);

/*
 * The loop. fd: to be polled for reading, the same one for the life of the object, not to be closed.
 * process: what goes wrong with the connection is told by `lost`; only -EBUSY, if a callback calls it.
 */
int luvfio_get_fd(struct luvfio *l);
int luvfio_process(struct luvfio *l);
/* Or let an sd-event loop do it; the event source lives until detach or the last unref. -EBUSY if attached.
 */
int luvfio_attach_event(struct luvfio *l, struct sd_event *event, int64_t priority);
void luvfio_detach_event(struct luvfio *l);

/*
 * Hands an fd over: luvfiod gets a duplicate, the caller keeps his own. Name: 1 to 64 printable ASCII; a
 * known name replaces that fd. States: running, preparing, prepared; quiescing for kinds state and vfio;
 * aborting, for what was on its way: a state is dropped then. ret_info may be NULL; its outcome is what this
 * host promises for the next update.
 */
int luvfio_preserve(struct luvfio *l, const char *name, enum luvfio_kind kind, int fd,
                    const struct luvfio_fd **ret_info);

/* What luvfiod holds, in order of preservation, from index 0 on; NULL after the last. */
const struct luvfio_fd *luvfio_list_fds(struct luvfio *l, size_t index);
/* One of them by name, NULL if there is none. */
const struct luvfio_fd *luvfio_find_fd(struct luvfio *l, const char *name);

/*
 * Tells what the VMM itself has found to speak against a live update: `luvfioctl check` shows it, and no
 * update begins. All there are now, at most 64, in place of those told before; 0: nothing. States: running,
 * preparing, prepared, quiescing, aborting. An update that the machine takes part in already ends, and
 * `abort` follows: so this is also how to say that `prepare` or `quiesce` has failed. luvfiod keeps them
 * until it is restarted: to be told again in `attached`.
 */
int luvfio_set_blockers(struct luvfio *l, const struct luvfio_blocker *blockers, size_t n);

/* Answers `prepare`. State preparing. */
int luvfio_prepared(struct luvfio *l);
/* Answers `quiesce`. State quiescing. When the first vCPU stopped; 0: now. */
int luvfio_quiesced(struct luvfio *l, uint64_t vcpus_stopped_usec);
/*
 * Answers `commit`. State quiesced. Whatever it returns, vCPUs stand until `abort` is called: where luvfiod
 * cannot have got the answer (-ENOTCONN, -EPROTO and the like) it will be, by luvfiod or by the rule about
 * lost connections; after 0, -ECONNRESET and -ETIMEDOUT it may have got it, and only luvfiod can say.
 */
int luvfio_committed(struct luvfio *l);

/*
 * Gets one fd back. State resuming, as often as wanted. Returns the fd, which is then the caller's. ret_info
 * may be NULL. Can take long for a large RAM: the kernel allocates nothing, but touches every page. It is
 * charged to the memory cgroup of the caller's unit.
 */
int luvfio_retrieve(struct luvfio *l, const char *name, const struct luvfio_fd **ret_info);

/*
 * vCPUs run: after the jump (all is retrieved and works) or after an abort. States resuming, aborting; does
 * nothing and returns 0 where luvfiod does not wait for it. When the last vCPU ran again; 0: now.
 */
int luvfio_resumed(struct luvfio *l, uint64_t vcpus_running_usec);

/* Takes the machine back out of luvfiod's hands, and its fds. State running. The object is then as before
 * luvfio_register(). */
int luvfio_withdraw(struct luvfio *l);

/* CLOCK_BOOTTIME in microseconds. */
uint64_t luvfio_now(void);

/* Text of the last error of a call with this object, with the names of what it was about; "" if there was
 * none. */
const char *luvfio_get_error(struct luvfio *l);

#ifdef __cplusplus
}
#endif

#endif
