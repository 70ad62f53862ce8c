/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "varlink/idl.h"

/* clang-format off */

/* Between luvfiod and luvfio-plugin-host; what the operations mean is said in <luvfio/plugin.h>. */

static SD_VARLINK_DEFINE_STRUCT_TYPE(
        Finding,
        SD_VARLINK_FIELD_COMMENT("Stable identifier."),
        SD_VARLINK_DEFINE_FIELD(id, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("blocker, warning or note."),
        SD_VARLINK_DEFINE_FIELD(severity, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("What is the matter."),
        SD_VARLINK_DEFINE_FIELD(message, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("What to do about it."),
        SD_VARLINK_DEFINE_FIELD(remedy, SD_VARLINK_STRING, SD_VARLINK_NULLABLE));

static SD_VARLINK_DEFINE_METHOD(
        Describe,
        SD_VARLINK_FIELD_COMMENT("Plugin's name."),
        SD_VARLINK_DEFINE_OUTPUT(name, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("Version of the plugin API it was built for."),
        SD_VARLINK_DEFINE_OUTPUT(abi, SD_VARLINK_INT, 0));

static SD_VARLINK_DEFINE_METHOD(
        Match,
        SD_VARLINK_FIELD_COMMENT("PCI address, 0000:03:00.0."),
        SD_VARLINK_DEFINE_INPUT(device, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("What the kernel preserves of it: LUVFIO_PRESERVED_* of luvfio/plugin.h. None: it does not say."),
        SD_VARLINK_DEFINE_INPUT(preserved, SD_VARLINK_INT, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("How long it may take, in microseconds; it is killed then. Default 30 s."),
        SD_VARLINK_DEFINE_INPUT(timeoutUSec, SD_VARLINK_INT, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("0: not mine; else 1 to 1000, and the highest of all plugins wins."),
        SD_VARLINK_DEFINE_OUTPUT(score, SD_VARLINK_INT, 0),
        SD_VARLINK_FIELD_COMMENT("What the plugin promises for it: reset, running, latched."),
        SD_VARLINK_DEFINE_OUTPUT(promise, SD_VARLINK_STRING, SD_VARLINK_NULLABLE));

static SD_VARLINK_DEFINE_METHOD(
        Preflight,
        SD_VARLINK_FIELD_COMMENT("PCI address, 0000:03:00.0."),
        SD_VARLINK_DEFINE_INPUT(device, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("What the kernel preserves of it: LUVFIO_PRESERVED_* of luvfio/plugin.h. None: it does not say."),
        SD_VARLINK_DEFINE_INPUT(preserved, SD_VARLINK_INT, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("How long it may take, in microseconds; it is killed then. Default 30 s."),
        SD_VARLINK_DEFINE_INPUT(timeoutUSec, SD_VARLINK_INT, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("What the plugin found."),
        SD_VARLINK_DEFINE_OUTPUT_BY_TYPE(findings, Finding, SD_VARLINK_ARRAY));

static SD_VARLINK_DEFINE_METHOD(
        Quiesced,
        SD_VARLINK_FIELD_COMMENT("PCI address, 0000:03:00.0."),
        SD_VARLINK_DEFINE_INPUT(device, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("What the kernel preserves of it: LUVFIO_PRESERVED_* of luvfio/plugin.h. None: it does not say."),
        SD_VARLINK_DEFINE_INPUT(preserved, SD_VARLINK_INT, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("How long it may take, in microseconds; it is killed then. Default 30 s."),
        SD_VARLINK_DEFINE_INPUT(timeoutUSec, SD_VARLINK_INT, SD_VARLINK_NULLABLE));

static SD_VARLINK_DEFINE_METHOD(
        Plan,
        SD_VARLINK_FIELD_COMMENT("PCI address, 0000:03:00.0."),
        SD_VARLINK_DEFINE_INPUT(device, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("What the kernel preserves of it: LUVFIO_PRESERVED_* of luvfio/plugin.h. None: it does not say."),
        SD_VARLINK_DEFINE_INPUT(preserved, SD_VARLINK_INT, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("How long it may take, in microseconds; it is killed then. Default 30 s."),
        SD_VARLINK_DEFINE_INPUT(timeoutUSec, SD_VARLINK_INT, SD_VARLINK_NULLABLE),
        SD_VARLINK_FIELD_COMMENT("What Rebind, Verify and Recover need to know; at most 16 KiB, the plugin's own text."),
        SD_VARLINK_DEFINE_OUTPUT(plan, SD_VARLINK_STRING, 0));

static SD_VARLINK_DEFINE_METHOD(
        Rebind,
        SD_VARLINK_FIELD_COMMENT("PCI address, 0000:03:00.0."),
        SD_VARLINK_DEFINE_INPUT(device, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("As Plan gave it."),
        SD_VARLINK_DEFINE_INPUT(plan, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("How long it may take, in microseconds; it is killed then. Default 30 s."),
        SD_VARLINK_DEFINE_INPUT(timeoutUSec, SD_VARLINK_INT, SD_VARLINK_NULLABLE));

static SD_VARLINK_DEFINE_METHOD(
        Verify,
        SD_VARLINK_FIELD_COMMENT("PCI address, 0000:03:00.0."),
        SD_VARLINK_DEFINE_INPUT(device, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("As Plan gave it."),
        SD_VARLINK_DEFINE_INPUT(plan, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("How long it may take, in microseconds; it is killed then. Default 30 s."),
        SD_VARLINK_DEFINE_INPUT(timeoutUSec, SD_VARLINK_INT, SD_VARLINK_NULLABLE));

static SD_VARLINK_DEFINE_METHOD(
        Recover,
        SD_VARLINK_FIELD_COMMENT("PCI address, 0000:03:00.0."),
        SD_VARLINK_DEFINE_INPUT(device, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("As Plan gave it."),
        SD_VARLINK_DEFINE_INPUT(plan, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("How long it may take, in microseconds; it is killed then. Default 30 s."),
        SD_VARLINK_DEFINE_INPUT(timeoutUSec, SD_VARLINK_INT, SD_VARLINK_NULLABLE));

static SD_VARLINK_DEFINE_ERROR(
        Failed,
        SD_VARLINK_FIELD_COMMENT("The device; empty if the plugin cannot be used at all."),
        SD_VARLINK_DEFINE_FIELD(device, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("Why; for interrupts that are on, their type: INTx, MSI or MSI-X."),
        SD_VARLINK_DEFINE_FIELD(reason, SD_VARLINK_STRING, 0));

static SD_VARLINK_DEFINE_ERROR(
        Died,
        SD_VARLINK_FIELD_COMMENT("The device."),
        SD_VARLINK_DEFINE_FIELD(device, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("How: the signal or exit status."),
        SD_VARLINK_DEFINE_FIELD(reason, SD_VARLINK_STRING, 0));

static SD_VARLINK_DEFINE_ERROR(
        TimedOut,
        SD_VARLINK_FIELD_COMMENT("The device."),
        SD_VARLINK_DEFINE_FIELD(device, SD_VARLINK_STRING, 0),
        SD_VARLINK_FIELD_COMMENT("How long it had."),
        SD_VARLINK_DEFINE_FIELD(reason, SD_VARLINK_STRING, 0));

SD_VARLINK_DEFINE_INTERFACE(
        org_luvfio_Plugin,
        "org.luvfio.Plugin",
        SD_VARLINK_INTERFACE_COMMENT("A device plugin in its own process."),
        SD_VARLINK_SYMBOL_COMMENT("Something that Preflight found"),
        &vl_type_Finding,
        SD_VARLINK_SYMBOL_COMMENT("Who it is"),
        &vl_method_Describe,
        SD_VARLINK_SYMBOL_COMMENT("Whether the plugin answers for a device"),
        &vl_method_Match,
        SD_VARLINK_SYMBOL_COMMENT("What speaks against an update; changes nothing"),
        &vl_method_Preflight,
        SD_VARLINK_SYMBOL_COMMENT("Succeeds if the device's interrupts are off and it can survive"),
        &vl_method_Quiesced,
        SD_VARLINK_SYMBOL_COMMENT("Says what has to be done after the jump"),
        &vl_method_Plan,
        SD_VARLINK_SYMBOL_COMMENT("Brings the device back under its driver, in the new kernel"),
        &vl_method_Rebind,
        SD_VARLINK_SYMBOL_COMMENT("Holds the device against the promise"),
        &vl_method_Verify,
        SD_VARLINK_SYMBOL_COMMENT("Brings the device of a discarded machine into a safe state"),
        &vl_method_Recover,
        SD_VARLINK_SYMBOL_COMMENT("The operation failed"),
        &vl_error_Failed,
        SD_VARLINK_SYMBOL_COMMENT("The plugin crashed while it did the operation"),
        &vl_error_Died,
        SD_VARLINK_SYMBOL_COMMENT("The plugin did not finish in time and was killed"),
        &vl_error_TimedOut);
