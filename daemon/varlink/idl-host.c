/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "varlink/idl.h"

/* clang-format off */

static SD_VARLINK_DEFINE_ENUM_TYPE(
        UpdateState,
        SD_VARLINK_FIELD_COMMENT("No update."),
        SD_VARLINK_DEFINE_ENUM_VALUE(idle),
        SD_VARLINK_FIELD_COMMENT("Looking for blockers."),
        SD_VARLINK_DEFINE_ENUM_VALUE(checking),
        SD_VARLINK_FIELD_COMMENT("Loading the kernel, preserving guest RAM; machines run."),
        SD_VARLINK_DEFINE_ENUM_VALUE(staging),
        SD_VARLINK_FIELD_COMMENT("Ready for Update; machines run."),
        SD_VARLINK_DEFINE_ENUM_VALUE(staged),
        SD_VARLINK_FIELD_COMMENT("Other services of the host are being stopped; machines run."),
        SD_VARLINK_DEFINE_ENUM_VALUE(draining),
        SD_VARLINK_FIELD_COMMENT("VMMs stop their vCPUs and turn device interrupts off."),
        SD_VARLINK_DEFINE_ENUM_VALUE(quiescing),
        SD_VARLINK_FIELD_COMMENT("VMMs have committed; the kernel is about to be replaced."),
        SD_VARLINK_DEFINE_ENUM_VALUE(handing_over),
        SD_VARLINK_FIELD_COMMENT("New kernel: sessions are being retrieved."),
        SD_VARLINK_DEFINE_ENUM_VALUE(restoring),
        SD_VARLINK_FIELD_COMMENT("New kernel: devices come back under their drivers."),
        SD_VARLINK_DEFINE_ENUM_VALUE(rebinding),
        SD_VARLINK_FIELD_COMMENT("New kernel: VMMs take their fds and let vCPUs run."),
        SD_VARLINK_DEFINE_ENUM_VALUE(resuming),
        SD_VARLINK_FIELD_COMMENT("New kernel: sessions are finished, services started again."),
        SD_VARLINK_DEFINE_ENUM_VALUE(finishing));

static SD_VARLINK_DEFINE_ENUM_TYPE(
        Severity,
        SD_VARLINK_FIELD_COMMENT("An update is refused."),
        SD_VARLINK_DEFINE_ENUM_VALUE(blocker),
        SD_VARLINK_FIELD_COMMENT("An update goes on, and something is lost or slower than it need be."),
        SD_VARLINK_DEFINE_ENUM_VALUE(warning),
        SD_VARLINK_FIELD_COMMENT("Worth knowing."),
        SD_VARLINK_DEFINE_ENUM_VALUE(note));

static SD_VARLINK_DEFINE_ENUM_TYPE(
        Fallback,
        SD_VARLINK_FIELD_COMMENT("Nothing happens; machines run on."),
        SD_VARLINK_DEFINE_ENUM_VALUE(none),
        SD_VARLINK_FIELD_COMMENT("The host is rebooted cold, through its service manager; machines are lost."),
        SD_VARLINK_DEFINE_ENUM_VALUE(cold));

static SD_VARLINK_DEFINE_ENUM_TYPE(
        Result,
        SD_VARLINK_FIELD_COMMENT("All machines run under the new kernel."),
        SD_VARLINK_DEFINE_ENUM_VALUE(done),
        SD_VARLINK_FIELD_COMMENT("The new kernel runs, at least one machine is stranded."),
        SD_VARLINK_DEFINE_ENUM_VALUE(stranded),
        SD_VARLINK_FIELD_COMMENT("Given up before the jump; all machines run under the old kernel."),
        SD_VARLINK_DEFINE_ENUM_VALUE(aborted));

static SD_VARLINK_DEFINE_STRUCT_TYPE(
        Finding,
        SD_VARLINK_FIELD_COMMENT("Stable identifier, e.g. kernel-no-liveupdate; see luvfiod(8)."),
        SD_VARLINK_DEFINE_FIELD(id, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("How bad it is."),
        SD_VARLINK_DEFINE_FIELD_BY_TYPE(severity, Severity, 0),
        SD_VARLINK_FIELD_COMMENT("Machine it concerns."),
        SD_VARLINK_DEFINE_FIELD(machine, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("PCI address it concerns."),
        SD_VARLINK_DEFINE_FIELD(device, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("What is the matter, a sentence that names the thing."),
        SD_VARLINK_DEFINE_FIELD(message, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("What to do about it."),
        SD_VARLINK_DEFINE_FIELD(remedy, SD_VARLINK_STRING, SD_VARLINK_NULLABLE));

static SD_VARLINK_DEFINE_STRUCT_TYPE(
        Promise,
        SD_VARLINK_FIELD_COMMENT("A kind of file descriptor (memfd, iommufd, vfio, state)."),
        SD_VARLINK_DEFINE_FIELD(kind, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("What becomes of it over the jump: preserved, reset, running, rebuilt. For vfio and iommufd: the least of all that machines have."),
        SD_VARLINK_DEFINE_FIELD(outcome, SD_VARLINK_STRING, 0));

static SD_VARLINK_DEFINE_STRUCT_TYPE(
        Machine,
        SD_VARLINK_FIELD_COMMENT("Name."),
        SD_VARLINK_DEFINE_FIELD(name, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("State, as org.luvfio.Machine has it."),
        SD_VARLINK_DEFINE_FIELD(state, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("Why it is stranded, or why it held the last update up."),
        SD_VARLINK_DEFINE_FIELD(reason, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("Program and version, as it said."),
        SD_VARLINK_DEFINE_FIELD(vmm, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("Owner's uid. None after a jump until its record is read, and if that cannot be read."),
        SD_VARLINK_DEFINE_FIELD(uid, SD_VARLINK_INT, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("Owner's systemd unit, if it is in one."),
        SD_VARLINK_DEFINE_FIELD(unit, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("Process that registered it, while it lives."),
        SD_VARLINK_DEFINE_FIELD(pid, SD_VARLINK_INT, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("Whether the VMM watches for events now."),
        SD_VARLINK_DEFINE_FIELD(attached, SD_VARLINK_BOOL, 0),
        SD_VARLINK_FIELD_COMMENT("Jumps made."),
        SD_VARLINK_DEFINE_FIELD(generation, SD_VARLINK_INT, 0),
        SD_VARLINK_FIELD_COMMENT("Name of its LUO session, while there is one."),
        SD_VARLINK_DEFINE_FIELD(session, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("Number of file descriptors held."),
        SD_VARLINK_DEFINE_FIELD(fileDescriptors, SD_VARLINK_INT, 0),
        SD_VARLINK_FIELD_COMMENT("Bytes of its memfds."),
        SD_VARLINK_DEFINE_FIELD(memoryBytes, SD_VARLINK_INT, 0),
        SD_VARLINK_FIELD_COMMENT("PCI addresses of its devices."),
        SD_VARLINK_DEFINE_FIELD(devices, SD_VARLINK_STRING, SD_VARLINK_ARRAY));

static SD_VARLINK_DEFINE_STRUCT_TYPE(
        Device,
        SD_VARLINK_FIELD_COMMENT("PCI address (0000:00:03.0)."),
        SD_VARLINK_DEFINE_FIELD(address, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("Machine that owns it."),
        SD_VARLINK_DEFINE_FIELD(machine, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("Vendor and device, e.g. 8086:10c9."),
        SD_VARLINK_DEFINE_FIELD(id, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("Driver bound now."),
        SD_VARLINK_DEFINE_FIELD(driver, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("Plugin that answers for it, once a check or an update has asked."),
        SD_VARLINK_DEFINE_FIELD(plugin, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("What the plugin promises over the jump: reset, running, latched."),
        SD_VARLINK_DEFINE_FIELD(promise, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("The kernel's live-update state of it: none, outgoing, frozen, incoming, finished."),
        SD_VARLINK_DEFINE_FIELD(kernelState, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("Why the kernel gives it to nobody else: session (not finished), identity (it is not the device that was preserved, or the bridge above it is not)."),
        SD_VARLINK_DEFINE_FIELD(blockedBy, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("What the next live update preserves of it, as this kernel says: owner (nobody else gets it), state (it is not reset), dma (bus mastering stays on, and its DMA goes on), iommu (what it is attached to translates without a gap), interrupts (those of the blackout arrive afterwards), sriov (its virtual functions stay). None: the kernel does not say."),
        SD_VARLINK_DEFINE_FIELD(preserved, SD_VARLINK_STRING, SD_VARLINK_ARRAY | SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("What of these is not preserved: afterwards it is as after a reset."),
        SD_VARLINK_DEFINE_FIELD(notPreserved, SD_VARLINK_STRING, SD_VARLINK_ARRAY | SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("What is wrong with it."),
        SD_VARLINK_DEFINE_FIELD(reason, SD_VARLINK_STRING, SD_VARLINK_NULLABLE));

static SD_VARLINK_DEFINE_STRUCT_TYPE(
        Phase,
        SD_VARLINK_FIELD_COMMENT("checking, staging, ... as in UpdateState; kernel is the time from reboot(2) to the new daemon."),
        SD_VARLINK_DEFINE_FIELD(name, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("Machine, for a machine's own phase (stop, kernel, wait, resume)."),
        SD_VARLINK_DEFINE_FIELD(machine, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("Begin, microseconds from the begin of the update, on one clock over the jump."),
        SD_VARLINK_DEFINE_FIELD(startUSec, SD_VARLINK_INT, 0),
        SD_VARLINK_FIELD_COMMENT("Length in microseconds."),
        SD_VARLINK_DEFINE_FIELD(durationUSec, SD_VARLINK_INT, 0));

static SD_VARLINK_DEFINE_STRUCT_TYPE(
        MachineReport,
        SD_VARLINK_FIELD_COMMENT("Machine."),
        SD_VARLINK_DEFINE_FIELD(machine, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("From the first vCPU stopped to the last running, microseconds. None if it did not stand or has not come back."),
        SD_VARLINK_DEFINE_FIELD(blackoutUSec, SD_VARLINK_INT, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("Why it is stranded, if it is."),
        SD_VARLINK_DEFINE_FIELD(strandedReason, SD_VARLINK_STRING, SD_VARLINK_NULLABLE));

static SD_VARLINK_DEFINE_STRUCT_TYPE(
        Report,
        SD_VARLINK_FIELD_COMMENT("The update's id, 128 bits in hex."),
        SD_VARLINK_DEFINE_FIELD(updateId, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("How it ended."),
        SD_VARLINK_DEFINE_FIELD_BY_TYPE(result, Result, 0),
        SD_VARLINK_FIELD_COMMENT("Why it was aborted; the first reason, and in which state."),
        SD_VARLINK_DEFINE_FIELD(reason, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("When it began, CLOCK_REALTIME in microseconds."),
        SD_VARLINK_DEFINE_FIELD(startedRealtimeUSec, SD_VARLINK_INT, 0),
        SD_VARLINK_FIELD_COMMENT("Kernel release before."),
        SD_VARLINK_DEFINE_FIELD(fromKernel, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("Kernel release after (or intended)."),
        SD_VARLINK_DEFINE_FIELD(toKernel, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("Clock that ties both sides together: tsc, or realtime, which may be off by half a second; none before the jump."),
        SD_VARLINK_DEFINE_FIELD(clock, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("What was lost to the guests, machine by machine."),
        SD_VARLINK_DEFINE_FIELD_BY_TYPE(machines, MachineReport, SD_VARLINK_ARRAY),
        SD_VARLINK_FIELD_COMMENT("All phases, in order of begin."),
        SD_VARLINK_DEFINE_FIELD_BY_TYPE(phases, Phase, SD_VARLINK_ARRAY));

static SD_VARLINK_DEFINE_METHOD(
        Describe,
        SD_VARLINK_FIELD_COMMENT("Version of luvfiod."),
        SD_VARLINK_DEFINE_OUTPUT(version, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("device (the kernel's LUO) or simulated."),
        SD_VARLINK_DEFINE_OUTPUT(backend, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("Running kernel's release."),
        SD_VARLINK_DEFINE_OUTPUT(kernel, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("Where the update is."),
        SD_VARLINK_DEFINE_OUTPUT_BY_TYPE(state, UpdateState, 0),
        SD_VARLINK_FIELD_COMMENT("Id of the update under way."),
        SD_VARLINK_DEFINE_OUTPUT(updateId, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("What this kernel makes of each kind of file descriptor."),
        SD_VARLINK_DEFINE_OUTPUT_BY_TYPE(promises, Promise, SD_VARLINK_ARRAY),
        SD_VARLINK_FIELD_COMMENT("Machines registered."),
        SD_VARLINK_DEFINE_OUTPUT(machines, SD_VARLINK_INT, 0),
        SD_VARLINK_FIELD_COMMENT("Machines stranded."),
        SD_VARLINK_DEFINE_OUTPUT(stranded, SD_VARLINK_INT, 0),
        SD_VARLINK_FIELD_COMMENT("The last update, if there was one."),
        SD_VARLINK_DEFINE_OUTPUT_BY_TYPE(lastUpdate, Report, SD_VARLINK_NULLABLE));

#define KERNEL_INPUT                                                                                       \
        SD_VARLINK_FIELD_COMMENT("Index of the kernel image's fd in this message. None: what is staged; Check then looks at no kernel."), \
        SD_VARLINK_DEFINE_INPUT(kernelFileDescriptor, SD_VARLINK_INT, SD_VARLINK_NULLABLE),                \
        SD_VARLINK_FIELD_COMMENT("Index of the initrd's fd."),                                             \
        SD_VARLINK_DEFINE_INPUT(initrdFileDescriptor, SD_VARLINK_INT, SD_VARLINK_NULLABLE),                \
        SD_VARLINK_FIELD_COMMENT("The new kernel's command line, at most 2047 bytes. None: the running kernel's."),            \
        SD_VARLINK_DEFINE_INPUT(commandLine, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),                      \
        SD_VARLINK_FIELD_COMMENT("Names of machines that an update may lose if they hold it up; each has to be there."),                  \
        SD_VARLINK_DEFINE_INPUT(sacrifice, SD_VARLINK_STRING, SD_VARLINK_ARRAY | SD_VARLINK_NULLABLE)

static SD_VARLINK_DEFINE_METHOD(
        Check,
        KERNEL_INPUT,
        SD_VARLINK_FIELD_COMMENT("No blocker was found."),
        SD_VARLINK_DEFINE_OUTPUT(ready, SD_VARLINK_BOOL, 0),
        SD_VARLINK_FIELD_COMMENT("All that was found, blockers first."),
        SD_VARLINK_DEFINE_OUTPUT_BY_TYPE(findings, Finding, SD_VARLINK_ARRAY));

/* As in systemd's interfaces. */
#define AUTHENTICATION_INPUT                                                                               \
        SD_VARLINK_FIELD_COMMENT("Whether polkit may ask the user; else a call that needs it is refused with "                  \
                                 "io.systemd.InteractiveAuthenticationRequired."),                         \
        SD_VARLINK_DEFINE_INPUT(allowInteractiveAuthentication, SD_VARLINK_BOOL, SD_VARLINK_NULLABLE)

#define PROGRESS_OUTPUT                                                                                    \
        SD_VARLINK_FIELD_COMMENT("The update's id, 128 bits in hex; none while there is none."),             \
        SD_VARLINK_DEFINE_OUTPUT(updateId, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),                        \
        SD_VARLINK_FIELD_COMMENT("Where it is now."),                                                      \
        SD_VARLINK_DEFINE_OUTPUT_BY_TYPE(state, UpdateState, 0),                                           \
        SD_VARLINK_FIELD_COMMENT("What happens, for people."),                                             \
        SD_VARLINK_DEFINE_OUTPUT(message, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),                         \
        SD_VARLINK_FIELD_COMMENT("Machine it is about."),                                                  \
        SD_VARLINK_DEFINE_OUTPUT(machine, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),                         \
        SD_VARLINK_FIELD_COMMENT("Machine's state, where that is what changed."),                          \
        SD_VARLINK_DEFINE_OUTPUT(machineState, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),                    \
        SD_VARLINK_FIELD_COMMENT("Steps of this state that are done, where they can be counted."),      \
        SD_VARLINK_DEFINE_OUTPUT(done, SD_VARLINK_INT, SD_VARLINK_NULLABLE),                               \
        SD_VARLINK_FIELD_COMMENT("Steps of this state in all."),                                           \
        SD_VARLINK_DEFINE_OUTPUT(total, SD_VARLINK_INT, SD_VARLINK_NULLABLE),                              \
        SD_VARLINK_FIELD_COMMENT("Set in the last message of an update."),                                 \
        SD_VARLINK_DEFINE_OUTPUT_BY_TYPE(report, Report, SD_VARLINK_NULLABLE)

static SD_VARLINK_DEFINE_METHOD_FULL(
        Stage,
        SD_VARLINK_SUPPORTS_MORE,
        KERNEL_INPUT,
        AUTHENTICATION_INPUT,
        PROGRESS_OUTPUT);

static SD_VARLINK_DEFINE_METHOD_FULL(
        Update,
        SD_VARLINK_SUPPORTS_MORE,
        KERNEL_INPUT,
        SD_VARLINK_FIELD_COMMENT("Check and stage the update, and take it back; machines run all the time."),
        SD_VARLINK_DEFINE_INPUT(dryRun, SD_VARLINK_BOOL, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("Time for all VMMs to stop their vCPUs, microseconds, at most an hour. None or 0: ten seconds."),
        SD_VARLINK_DEFINE_INPUT(deadlineUSec, SD_VARLINK_INT, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("What to do when a live update cannot be had. Default none."),
        SD_VARLINK_DEFINE_INPUT_BY_TYPE(fallback, Fallback, SD_VARLINK_NULLABLE),
        AUTHENTICATION_INPUT,
        PROGRESS_OUTPUT);

static SD_VARLINK_DEFINE_METHOD(Abort, AUTHENTICATION_INPUT);

static SD_VARLINK_DEFINE_METHOD_FULL(Monitor, SD_VARLINK_REQUIRES_MORE, PROGRESS_OUTPUT);

static SD_VARLINK_DEFINE_METHOD(
        ListMachines,
        SD_VARLINK_FIELD_COMMENT("All machines, by name."),
        SD_VARLINK_DEFINE_OUTPUT_BY_TYPE(machines, Machine, SD_VARLINK_ARRAY));

static SD_VARLINK_DEFINE_METHOD(
        ListDevices,
        SD_VARLINK_FIELD_COMMENT("All devices of all machines, by address."),
        SD_VARLINK_DEFINE_OUTPUT_BY_TYPE(devices, Device, SD_VARLINK_ARRAY));

static SD_VARLINK_DEFINE_METHOD(
        History,
        SD_VARLINK_FIELD_COMMENT("At most this many, 0 or more; default 20."),
        SD_VARLINK_DEFINE_INPUT(limit, SD_VARLINK_INT, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("Updates, newest first; without phases."),
        SD_VARLINK_DEFINE_OUTPUT_BY_TYPE(updates, Report, SD_VARLINK_ARRAY));

static SD_VARLINK_DEFINE_METHOD(
        Analyze,
        SD_VARLINK_FIELD_COMMENT("The update's whole id; none: the last one."),
        SD_VARLINK_DEFINE_INPUT(updateId, SD_VARLINK_STRING, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("With all phases."),
        SD_VARLINK_DEFINE_OUTPUT_BY_TYPE(report, Report, 0));

static SD_VARLINK_DEFINE_METHOD(
        Discard,
        SD_VARLINK_FIELD_COMMENT("A stranded machine: its devices are made safe, its RAM is freed."),
        SD_VARLINK_DEFINE_INPUT(machine, SD_VARLINK_STRING, 0),
        AUTHENTICATION_INPUT);

static SD_VARLINK_DEFINE_METHOD_FULL(
        Inhibit,
        SD_VARLINK_REQUIRES_MORE,
        SD_VARLINK_FIELD_COMMENT("Who forbids updates, for people: 1 to 256 bytes without control characters."),
        SD_VARLINK_DEFINE_INPUT(who, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("Why, of the same kind; shown by Check."),
        SD_VARLINK_DEFINE_INPUT(why, SD_VARLINK_STRING, 0),
        AUTHENTICATION_INPUT);

static SD_VARLINK_DEFINE_ERROR(
        Blocked,
        SD_VARLINK_FIELD_COMMENT("What Check found."),
        SD_VARLINK_DEFINE_FIELD_BY_TYPE(findings, Finding, SD_VARLINK_ARRAY));
static SD_VARLINK_DEFINE_ERROR(
        UpdateFailed,
        SD_VARLINK_FIELD_COMMENT("State in which it failed; machines run on. Of Discard: the state now, the machine stays stranded."),
        SD_VARLINK_DEFINE_FIELD_BY_TYPE(state, UpdateState, 0),
        SD_VARLINK_FIELD_COMMENT("Why."),
        SD_VARLINK_DEFINE_FIELD(reason, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("Machine it failed at."),
        SD_VARLINK_DEFINE_FIELD(machine, SD_VARLINK_STRING, SD_VARLINK_NULLABLE));
static SD_VARLINK_DEFINE_ERROR(
        UpdateInProgress,
        SD_VARLINK_FIELD_COMMENT("The update under way."),
        SD_VARLINK_DEFINE_FIELD(updateId, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("Where it is."),
        SD_VARLINK_DEFINE_FIELD_BY_TYPE(state, UpdateState, 0));
static SD_VARLINK_DEFINE_ERROR(
        NotPossible,
        SD_VARLINK_FIELD_COMMENT("State in which the call is not allowed."),
        SD_VARLINK_DEFINE_FIELD_BY_TYPE(state, UpdateState, 0));
static SD_VARLINK_DEFINE_ERROR(
        NoSuchUpdate,
        SD_VARLINK_FIELD_COMMENT("The id asked for; empty if there never was an update."),
        SD_VARLINK_DEFINE_FIELD(updateId, SD_VARLINK_STRING, 0));
static SD_VARLINK_DEFINE_ERROR(
        NoSuchMachine,
        SD_VARLINK_FIELD_COMMENT("The name asked for."),
        SD_VARLINK_DEFINE_FIELD(machine, SD_VARLINK_STRING, 0));
static SD_VARLINK_DEFINE_ERROR(
        NotStranded,
        SD_VARLINK_FIELD_COMMENT("The machine; only stranded ones can be discarded."),
        SD_VARLINK_DEFINE_FIELD(machine, SD_VARLINK_STRING, 0));
static SD_VARLINK_DEFINE_ERROR(
        BadKernel,
        SD_VARLINK_FIELD_COMMENT("What is wrong with the kernel, initrd or command line."),
        SD_VARLINK_DEFINE_FIELD(reason, SD_VARLINK_STRING, 0));
static SD_VARLINK_DEFINE_ERROR(NoKernel);

SD_VARLINK_DEFINE_INTERFACE(
        org_luvfio_Host,
        "org.luvfio.Host",
        SD_VARLINK_INTERFACE_COMMENT("What operators and fleet automation speak: check, stage, update and follow it. "
                                     "Reading is open to the socket's group; changes are for root or by polkit."),
        SD_VARLINK_SYMBOL_COMMENT("Where an update is"),
        &vl_type_UpdateState,
        SD_VARLINK_SYMBOL_COMMENT("How bad a finding is"),
        &vl_type_Severity,
        SD_VARLINK_SYMBOL_COMMENT("What to do when a live update cannot be had"),
        &vl_type_Fallback,
        SD_VARLINK_SYMBOL_COMMENT("How an update ended"),
        &vl_type_Result,
        SD_VARLINK_SYMBOL_COMMENT("Something that Check found"),
        &vl_type_Finding,
        SD_VARLINK_SYMBOL_COMMENT("What becomes of a kind of file descriptor"),
        &vl_type_Promise,
        SD_VARLINK_SYMBOL_COMMENT("A machine"),
        &vl_type_Machine,
        SD_VARLINK_SYMBOL_COMMENT("A device"),
        &vl_type_Device,
        SD_VARLINK_SYMBOL_COMMENT("A stretch of time in an update"),
        &vl_type_Phase,
        SD_VARLINK_SYMBOL_COMMENT("What an update cost one machine"),
        &vl_type_MachineReport,
        SD_VARLINK_SYMBOL_COMMENT("An update that has ended"),
        &vl_type_Report,
        SD_VARLINK_SYMBOL_COMMENT("What this host can do, and where it is"),
        &vl_method_Describe,
        SD_VARLINK_SYMBOL_COMMENT("Names every blocker of an update, with its remedy; changes nothing. Errors: BadKernel (the command line is too long), NoSuchMachine"),
        &vl_method_Check,
        SD_VARLINK_SYMBOL_COMMENT("Does all that can be done while machines run: loads the kernel, preserves guest RAM. Errors: NoKernel, BadKernel, NoSuchMachine, UpdateInProgress, Blocked, UpdateFailed"),
        &vl_method_Stage,
        SD_VARLINK_SYMBOL_COMMENT("Replaces the kernel; stages first if that was not done. The connection is lost at the jump. Errors: as Stage"),
        &vl_method_Update,
        SD_VARLINK_SYMBOL_COMMENT("Gives an update up; returns when all machines run again. Error: NotPossible, where there is none or the jump was made"),
        &vl_method_Abort,
        SD_VARLINK_SYMBOL_COMMENT("Reports every change, beginning with the present state"),
        &vl_method_Monitor,
        SD_VARLINK_SYMBOL_COMMENT("Lists the machines"),
        &vl_method_ListMachines,
        SD_VARLINK_SYMBOL_COMMENT("Lists the machines' devices"),
        &vl_method_ListDevices,
        SD_VARLINK_SYMBOL_COMMENT("Lists past updates"),
        &vl_method_History,
        SD_VARLINK_SYMBOL_COMMENT("Shows where an update's time went. Error: NoSuchUpdate"),
        &vl_method_Analyze,
        SD_VARLINK_SYMBOL_COMMENT("Gives a stranded machine up. Errors: NoSuchMachine, NotStranded, UpdateFailed (its session cannot be finished)"),
        &vl_method_Discard,
        SD_VARLINK_SYMBOL_COMMENT("Forbids updates for as long as the connection lasts; its one reply says that it holds"),
        &vl_method_Inhibit,
        SD_VARLINK_SYMBOL_COMMENT("Refused: there are blockers"),
        &vl_error_Blocked,
        SD_VARLINK_SYMBOL_COMMENT("Given up on the way; all machines run. Of Discard: it could not be done"),
        &vl_error_UpdateFailed,
        SD_VARLINK_SYMBOL_COMMENT("Another update is under way"),
        &vl_error_UpdateInProgress,
        SD_VARLINK_SYMBOL_COMMENT("Not in this state"),
        &vl_error_NotPossible,
        SD_VARLINK_SYMBOL_COMMENT("No update of that id"),
        &vl_error_NoSuchUpdate,
        SD_VARLINK_SYMBOL_COMMENT("No machine of that name"),
        &vl_error_NoSuchMachine,
        SD_VARLINK_SYMBOL_COMMENT("The machine is not stranded"),
        &vl_error_NotStranded,
        SD_VARLINK_SYMBOL_COMMENT("The kernel image, initrd or command line will not do"),
        &vl_error_BadKernel,
        SD_VARLINK_SYMBOL_COMMENT("No kernel was given or staged"),
        &vl_error_NoKernel);
