/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "varlink/idl.h"

/* clang-format off */

/* Kinds, states and events have their C enums in machine/machine.h; names are the same. */

static SD_VARLINK_DEFINE_ENUM_TYPE(
        FileDescriptorKind,
        SD_VARLINK_FIELD_COMMENT("Guest RAM: a memfd (unlinked shmem, no hugetlb)."),
        SD_VARLINK_DEFINE_ENUM_VALUE(memfd),
        SD_VARLINK_FIELD_COMMENT("An open /dev/iommu."),
        SD_VARLINK_DEFINE_ENUM_VALUE(iommufd),
        SD_VARLINK_FIELD_COMMENT("A VFIO device character device (/dev/vfio/devices/vfioN)."),
        SD_VARLINK_DEFINE_ENUM_VALUE(vfio),
        SD_VARLINK_FIELD_COMMENT("The VMM's own state, written while the vCPUs stand: a memfd."),
        SD_VARLINK_DEFINE_ENUM_VALUE(state));

static SD_VARLINK_DEFINE_ENUM_TYPE(
        Outcome,
        SD_VARLINK_FIELD_COMMENT("The same object is there after the jump."),
        SD_VARLINK_DEFINE_ENUM_VALUE(preserved),
        SD_VARLINK_FIELD_COMMENT("The device is there after the jump, was reset on the way, and the fd is as freshly opened."),
        SD_VARLINK_DEFINE_ENUM_VALUE(reset),
        SD_VARLINK_FIELD_COMMENT("The device runs on: its state and its DMA stay as they are, and the fd is to be bound to an iommufd again."),
        SD_VARLINK_DEFINE_ENUM_VALUE(running),
        SD_VARLINK_FIELD_COMMENT("Not preserved by this kernel: the VMM opens and fills a new one after the jump."),
        SD_VARLINK_DEFINE_ENUM_VALUE(rebuilt));

static SD_VARLINK_DEFINE_ENUM_TYPE(
        MachineState,
        SD_VARLINK_FIELD_COMMENT("vCPUs run, no update concerns the machine."),
        SD_VARLINK_DEFINE_ENUM_VALUE(running),
        SD_VARLINK_FIELD_COMMENT("vCPUs run, the VMM was asked to prepare and has not answered."),
        SD_VARLINK_DEFINE_ENUM_VALUE(preparing),
        SD_VARLINK_FIELD_COMMENT("vCPUs run, guest RAM is preserved."),
        SD_VARLINK_DEFINE_ENUM_VALUE(prepared),
        SD_VARLINK_FIELD_COMMENT("The VMM was asked to stop vCPUs and has not answered."),
        SD_VARLINK_DEFINE_ENUM_VALUE(quiescing),
        SD_VARLINK_FIELD_COMMENT("vCPUs stand, device interrupts are off."),
        SD_VARLINK_DEFINE_ENUM_VALUE(quiesced),
        SD_VARLINK_FIELD_COMMENT("As quiesced, and the VMM resumes only when told."),
        SD_VARLINK_DEFINE_ENUM_VALUE(committed),
        SD_VARLINK_FIELD_COMMENT("After an aborted update: the VMM was told to run on and has not answered."),
        SD_VARLINK_DEFINE_ENUM_VALUE(aborting),
        SD_VARLINK_FIELD_COMMENT("After the jump: sessions and devices are being brought back, or wait for the VMM."),
        SD_VARLINK_DEFINE_ENUM_VALUE(restoring),
        SD_VARLINK_FIELD_COMMENT("After the jump: the VMM may retrieve its file descriptors."),
        SD_VARLINK_DEFINE_ENUM_VALUE(resuming),
        SD_VARLINK_FIELD_COMMENT("After the jump: the machine could not be brought back; nothing of it was touched or lost."),
        SD_VARLINK_DEFINE_ENUM_VALUE(stranded));

static SD_VARLINK_DEFINE_ENUM_TYPE(
        EventType,
        SD_VARLINK_FIELD_COMMENT("First reply of every Watch: the state the machine is in."),
        SD_VARLINK_DEFINE_ENUM_VALUE(attached),
        SD_VARLINK_FIELD_COMMENT("An update begins: Preserve what is new or changed, then call Prepared. vCPUs run on."),
        SD_VARLINK_DEFINE_ENUM_VALUE(prepare),
        SD_VARLINK_FIELD_COMMENT("Stop vCPUs, turn device interrupts off, Preserve the state, then call Quiesced."),
        SD_VARLINK_DEFINE_ENUM_VALUE(quiesce),
        SD_VARLINK_FIELD_COMMENT("Call Committed; from then on resume only on abort, never on a timeout or a lost connection."),
        SD_VARLINK_DEFINE_ENUM_VALUE(commit),
        SD_VARLINK_FIELD_COMMENT("The update was given up: turn interrupts on, let vCPUs run, then call Resumed."),
        SD_VARLINK_DEFINE_ENUM_VALUE(abort),
        SD_VARLINK_FIELD_COMMENT("After the jump: sessions and devices are back, Retrieve works now."),
        SD_VARLINK_DEFINE_ENUM_VALUE(resume),
        SD_VARLINK_FIELD_COMMENT("After Resumed: nothing of the update is left."),
        SD_VARLINK_DEFINE_ENUM_VALUE(finished));

static SD_VARLINK_DEFINE_STRUCT_TYPE(
        FileDescriptor,
        SD_VARLINK_FIELD_COMMENT("Name given by the VMM, unique in the machine."),
        SD_VARLINK_DEFINE_FIELD(name, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("What it is."),
        SD_VARLINK_DEFINE_FIELD_BY_TYPE(kind, FileDescriptorKind, 0),
        SD_VARLINK_FIELD_COMMENT("LUO token, unique on the host."),
        SD_VARLINK_DEFINE_FIELD(token, SD_VARLINK_INT, 0),
        SD_VARLINK_FIELD_COMMENT("What becomes of it over the jump."),
        SD_VARLINK_DEFINE_FIELD_BY_TYPE(outcome, Outcome, 0),
        SD_VARLINK_FIELD_COMMENT("Size in bytes, of a memfd."),
        SD_VARLINK_DEFINE_FIELD(size, SD_VARLINK_INT, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("PCI address (0000:00:03.0), of a vfio device."),
        SD_VARLINK_DEFINE_FIELD(device, SD_VARLINK_STRING, SD_VARLINK_NULLABLE));

static SD_VARLINK_DEFINE_STRUCT_TYPE(
        Blocker,
        SD_VARLINK_FIELD_COMMENT("What it is, for people: a sentence without a full stop; at most 1024 bytes."),
        SD_VARLINK_DEFINE_FIELD(message, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("What to do about it; at most 1024 bytes."),
        SD_VARLINK_DEFINE_FIELD(remedy, SD_VARLINK_STRING, SD_VARLINK_NULLABLE));

static SD_VARLINK_DEFINE_METHOD(
        Register,
        SD_VARLINK_FIELD_COMMENT("Machine name, unique on the host: 1 to 48 of A-Z a-z 0-9 _ . -, first a letter or digit."),
        SD_VARLINK_DEFINE_INPUT(name, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("The secret of an earlier Register, to take up a machine again from another systemd unit."),
        SD_VARLINK_DEFINE_INPUT(secret, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("Program and version, for people; at most 1024 bytes."),
        SD_VARLINK_DEFINE_INPUT(vmm, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("128 bits in hex; proves ownership later. The same one when the machine was known."),
        SD_VARLINK_DEFINE_OUTPUT(secret, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("Counts the jumps this machine has made; part of its LUO session's name."),
        SD_VARLINK_DEFINE_OUTPUT(generation, SD_VARLINK_INT, 0),
        SD_VARLINK_FIELD_COMMENT("The machine's state now. restoring, resuming: it came over a jump, Retrieve it."),
        SD_VARLINK_DEFINE_OUTPUT_BY_TYPE(state, MachineState, 0),
        SD_VARLINK_FIELD_COMMENT("What luvfiod holds of the machine, in order of preservation."),
        SD_VARLINK_DEFINE_OUTPUT_BY_TYPE(fileDescriptors, FileDescriptor, SD_VARLINK_ARRAY));

static SD_VARLINK_DEFINE_METHOD_FULL(
        Watch,
        SD_VARLINK_REQUIRES_MORE,
        SD_VARLINK_FIELD_COMMENT("Machine to watch. One watcher a machine; a new one replaces the old."),
        SD_VARLINK_DEFINE_INPUT(name, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("As in Register, where the unit is another."),
        SD_VARLINK_DEFINE_INPUT(secret, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("What to do."),
        SD_VARLINK_DEFINE_OUTPUT_BY_TYPE(event, EventType, 0),
        SD_VARLINK_FIELD_COMMENT("State of the machine with this event."),
        SD_VARLINK_DEFINE_OUTPUT_BY_TYPE(state, MachineState, 0),
        SD_VARLINK_FIELD_COMMENT("The update's id, 128 bits in hex."),
        SD_VARLINK_DEFINE_OUTPUT(updateId, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("Time left to answer, in microseconds."),
        SD_VARLINK_DEFINE_OUTPUT(remainingUSec, SD_VARLINK_INT, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("Why, for people; with abort."),
        SD_VARLINK_DEFINE_OUTPUT(reason, SD_VARLINK_STRING, SD_VARLINK_NULLABLE));

static SD_VARLINK_DEFINE_METHOD(
        Preserve,
        SD_VARLINK_FIELD_COMMENT("Machine. Allowed in running, preparing, prepared (memfd, iommufd, vfio), quiescing (state, vfio) and aborting (what was on its way; a state is dropped)."),
        SD_VARLINK_DEFINE_INPUT(machine, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("Name by which it is retrieved: 1 to 64 printable ASCII. A known name replaces that fd."),
        SD_VARLINK_DEFINE_INPUT(name, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("What the VMM says it is; verified."),
        SD_VARLINK_DEFINE_INPUT_BY_TYPE(kind, FileDescriptorKind, 0),
        SD_VARLINK_FIELD_COMMENT("Index of the fd in this message: always 0, one fd a call."),
        SD_VARLINK_DEFINE_INPUT(fileDescriptor, SD_VARLINK_INT, 0),
        SD_VARLINK_FIELD_COMMENT("What luvfiod made of it. It is preserved in LUO when an update stages it, not before."),
        SD_VARLINK_DEFINE_OUTPUT_BY_TYPE(fileDescriptor, FileDescriptor, 0));

static SD_VARLINK_DEFINE_METHOD(
        SetBlockers,
        SD_VARLINK_FIELD_COMMENT("Machine. Allowed in running, preparing, prepared, quiescing and aborting."),
        SD_VARLINK_DEFINE_INPUT(machine, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("All there are now, at most 64, in place of those before; none: nothing speaks against it."),
        SD_VARLINK_DEFINE_INPUT_BY_TYPE(blockers, Blocker, SD_VARLINK_ARRAY));

static SD_VARLINK_DEFINE_METHOD(
        Prepared,
        SD_VARLINK_FIELD_COMMENT("Machine. Allowed in preparing."),
        SD_VARLINK_DEFINE_INPUT(machine, SD_VARLINK_STRING, 0));

static SD_VARLINK_DEFINE_METHOD(
        Quiesced,
        SD_VARLINK_FIELD_COMMENT("Machine. Allowed in quiescing. vCPUs stand and device interrupts are off."),
        SD_VARLINK_DEFINE_INPUT(machine, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("When the first vCPU stopped: CLOCK_BOOTTIME, microseconds. None, 0 or a later time than now: now."),
        SD_VARLINK_DEFINE_INPUT(vcpusStoppedUSec, SD_VARLINK_INT, SD_VARLINK_NULLABLE));

static SD_VARLINK_DEFINE_METHOD(
        Committed,
        SD_VARLINK_FIELD_COMMENT("Machine. Allowed in quiesced after the commit event."),
        SD_VARLINK_DEFINE_INPUT(machine, SD_VARLINK_STRING, 0));

static SD_VARLINK_DEFINE_METHOD(
        Retrieve,
        SD_VARLINK_FIELD_COMMENT("Machine. Allowed in resuming, any number of times."),
        SD_VARLINK_DEFINE_INPUT(machine, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("Name of the file descriptor; each in a call of its own."),
        SD_VARLINK_DEFINE_INPUT(name, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("Index of the fd in this message: 0."),
        SD_VARLINK_DEFINE_OUTPUT(fileDescriptor, SD_VARLINK_INT, 0),
        SD_VARLINK_FIELD_COMMENT("What it is and what became of it."),
        SD_VARLINK_DEFINE_OUTPUT_BY_TYPE(description, FileDescriptor, 0));

static SD_VARLINK_DEFINE_METHOD(
        Resumed,
        SD_VARLINK_FIELD_COMMENT("Machine. Allowed in resuming (all is retrieved and works) and aborting (it runs on)."),
        SD_VARLINK_DEFINE_INPUT(machine, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("When the last vCPU ran again: CLOCK_BOOTTIME, microseconds. None, 0 or a later time than now: now."),
        SD_VARLINK_DEFINE_INPUT(vcpusRunningUSec, SD_VARLINK_INT, SD_VARLINK_NULLABLE));

static SD_VARLINK_DEFINE_METHOD(
        Withdraw,
        SD_VARLINK_FIELD_COMMENT("Machine. Allowed in running: luvfiod forgets it and drops its fds."),
        SD_VARLINK_DEFINE_INPUT(machine, SD_VARLINK_STRING, 0));

static SD_VARLINK_DEFINE_ERROR(
        InvalidName,
        SD_VARLINK_FIELD_COMMENT("The offending name, made printable."),
        SD_VARLINK_DEFINE_FIELD(name, SD_VARLINK_STRING, 0));
static SD_VARLINK_DEFINE_ERROR(
        NoSuchMachine,
        SD_VARLINK_FIELD_COMMENT("The name asked for."),
        SD_VARLINK_DEFINE_FIELD(machine, SD_VARLINK_STRING, 0));
static SD_VARLINK_DEFINE_ERROR(
        MachineExists,
        SD_VARLINK_FIELD_COMMENT("The name, which a machine of this or another owner has."),
        SD_VARLINK_DEFINE_FIELD(machine, SD_VARLINK_STRING, 0));
static SD_VARLINK_DEFINE_ERROR(
        NotOwner,
        SD_VARLINK_FIELD_COMMENT("The machine: it belongs to another unit, and the secret is missing or wrong."),
        SD_VARLINK_DEFINE_FIELD(machine, SD_VARLINK_STRING, 0));
static SD_VARLINK_DEFINE_ERROR(
        WrongState,
        SD_VARLINK_FIELD_COMMENT("The machine."),
        SD_VARLINK_DEFINE_FIELD(machine, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("The state it is in, in which the call is not allowed."),
        SD_VARLINK_DEFINE_FIELD_BY_TYPE(state, MachineState, 0));
static SD_VARLINK_DEFINE_ERROR(
        QuotaExceeded,
        SD_VARLINK_FIELD_COMMENT("What there is too much of: machines, fds or bytes (of memfds)."),
        SD_VARLINK_DEFINE_FIELD(what, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("How many a user may have."),
        SD_VARLINK_DEFINE_FIELD(limit, SD_VARLINK_INT, 0));
static SD_VARLINK_DEFINE_ERROR(
        UnsupportedFileDescriptor,
        SD_VARLINK_FIELD_COMMENT("The name given to it."),
        SD_VARLINK_DEFINE_FIELD(name, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("What it is, or what is wrong with it."),
        SD_VARLINK_DEFINE_FIELD(reason, SD_VARLINK_STRING, 0));
static SD_VARLINK_DEFINE_ERROR(
        MissingFileDescriptor,
        SD_VARLINK_FIELD_COMMENT("The name given: no fd came with the message, or more than one."),
        SD_VARLINK_DEFINE_FIELD(name, SD_VARLINK_STRING, 0));
static SD_VARLINK_DEFINE_ERROR(
        DuplicateFileDescriptor,
        SD_VARLINK_FIELD_COMMENT("The name given."),
        SD_VARLINK_DEFINE_FIELD(name, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("The name under which the same file is already held; of this or another machine."),
        SD_VARLINK_DEFINE_FIELD(other, SD_VARLINK_STRING, 0));
static SD_VARLINK_DEFINE_ERROR(
        NoSuchFileDescriptor,
        SD_VARLINK_FIELD_COMMENT("The name asked for."),
        SD_VARLINK_DEFINE_FIELD(name, SD_VARLINK_STRING, 0));
static SD_VARLINK_DEFINE_ERROR(
        RetrieveFailed,
        SD_VARLINK_FIELD_COMMENT("The name asked for."),
        SD_VARLINK_DEFINE_FIELD(name, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("What the kernel said."),
        SD_VARLINK_DEFINE_FIELD(reason, SD_VARLINK_STRING, 0));
static SD_VARLINK_DEFINE_ERROR(
        Stranded,
        SD_VARLINK_FIELD_COMMENT("The machine."),
        SD_VARLINK_DEFINE_FIELD(machine, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("Why it could not be brought back."),
        SD_VARLINK_DEFINE_FIELD(reason, SD_VARLINK_STRING, 0));

SD_VARLINK_DEFINE_INTERFACE(
        org_luvfio_Machine,
        "org.luvfio.Machine",
        SD_VARLINK_INTERFACE_COMMENT("What a VMM speaks: it registers its machine, hands over the fds to preserve, and follows an update. "
                                     "File descriptors travel one a call, one call at a time on a connection; events come on a connection of their own."),
        SD_VARLINK_SYMBOL_COMMENT("What a file descriptor is"),
        &vl_type_FileDescriptorKind,
        SD_VARLINK_SYMBOL_COMMENT("What becomes of a file descriptor over the jump"),
        &vl_type_Outcome,
        SD_VARLINK_SYMBOL_COMMENT("State of a machine"),
        &vl_type_MachineState,
        SD_VARLINK_SYMBOL_COMMENT("What a VMM is asked to do"),
        &vl_type_EventType,
        SD_VARLINK_SYMBOL_COMMENT("A file descriptor that luvfiod holds for a machine"),
        &vl_type_FileDescriptor,
        SD_VARLINK_SYMBOL_COMMENT("What speaks against a live update of a machine, in its VMM's words"),
        &vl_type_Blocker,
        SD_VARLINK_SYMBOL_COMMENT("Makes a machine known, or takes it up again. Binds it to the caller's uid and systemd unit. Errors: InvalidName, MachineExists, NotOwner (the secret is wrong), QuotaExceeded, Stranded, WrongState (a new one, while machines are stopped)"),
        &vl_method_Register,
        SD_VARLINK_SYMBOL_COMMENT("Sends what the VMM has to do, as it comes; keep it open on a connection of its own. Errors: NoSuchMachine, NotOwner"),
        &vl_method_Watch,
        SD_VARLINK_SYMBOL_COMMENT("Hands one file descriptor over; the sender keeps its own. Errors: NoSuchMachine, NotOwner, InvalidName, MissingFileDescriptor, WrongState, UnsupportedFileDescriptor, DuplicateFileDescriptor, QuotaExceeded"),
        &vl_method_Preserve,
        SD_VARLINK_SYMBOL_COMMENT("Answers the prepare event. Errors: NoSuchMachine, NotOwner, WrongState"),
        &vl_method_Prepared,
        SD_VARLINK_SYMBOL_COMMENT("Tells what Check is to find against the machine; an update that the machine takes part in ends. Not kept over a restart of luvfiod: it is told again after attached. Errors: as Prepared"),
        &vl_method_SetBlockers,
        SD_VARLINK_SYMBOL_COMMENT("Answers the quiesce event. Errors: as Prepared"),
        &vl_method_Quiesced,
        SD_VARLINK_SYMBOL_COMMENT("Answers the commit event. Errors: as Prepared"),
        &vl_method_Committed,
        SD_VARLINK_SYMBOL_COMMENT("Gets one file descriptor back after the jump. Errors: NoSuchMachine, NotOwner, InvalidName, Stranded, WrongState, NoSuchFileDescriptor (or it is to be rebuilt), RetrieveFailed"),
        &vl_method_Retrieve,
        SD_VARLINK_SYMBOL_COMMENT("Says that vCPUs run: after the jump, or after an abort. Errors: as Prepared"),
        &vl_method_Resumed,
        SD_VARLINK_SYMBOL_COMMENT("Takes the machine back out of luvfiod's hands. A lost connection does not. Errors: as Prepared"),
        &vl_method_Withdraw,
        SD_VARLINK_SYMBOL_COMMENT("A machine's or file descriptor's name breaks the rules"),
        &vl_error_InvalidName,
        SD_VARLINK_SYMBOL_COMMENT("No machine of that name"),
        &vl_error_NoSuchMachine,
        SD_VARLINK_SYMBOL_COMMENT("A machine of that name is there"),
        &vl_error_MachineExists,
        SD_VARLINK_SYMBOL_COMMENT("The machine is another's"),
        &vl_error_NotOwner,
        SD_VARLINK_SYMBOL_COMMENT("Not allowed in the machine's state"),
        &vl_error_WrongState,
        SD_VARLINK_SYMBOL_COMMENT("More than one user may have"),
        &vl_error_QuotaExceeded,
        SD_VARLINK_SYMBOL_COMMENT("A file descriptor that cannot be preserved, or is not what it was said to be"),
        &vl_error_UnsupportedFileDescriptor,
        SD_VARLINK_SYMBOL_COMMENT("Preserve without its one file descriptor"),
        &vl_error_MissingFileDescriptor,
        SD_VARLINK_SYMBOL_COMMENT("The same file twice"),
        &vl_error_DuplicateFileDescriptor,
        SD_VARLINK_SYMBOL_COMMENT("No file descriptor of that name"),
        &vl_error_NoSuchFileDescriptor,
        SD_VARLINK_SYMBOL_COMMENT("The kernel did not give it back"),
        &vl_error_RetrieveFailed,
        SD_VARLINK_SYMBOL_COMMENT("The machine is stranded"),
        &vl_error_Stranded);
