/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "config.h"
#include "plugin-host/host-device.h"
#include "util/io.h"
#include "util/log.h"
#include "util/string-util.h"
#include "util/time-util.h"

/* How often a wait looks again even if no uevent came: for trees that send none. */
#define WAIT_TICK_USEC (50 * USEC_PER_MSEC)

static void closedirp(DIR **d)
{
        if (*d)
                (void) closedir(*d);
}

/* A plugin's texts go to journals, terminals and JSON: make them harmless. */
static void clean_text(char *s)
{
        for (; *s; s++)
                if (*s < 0x20 || *s > 0x7e)
                        *s = '?';
}

int luv_host_device_new(const HostOptions *options, const char *address, uint64_t preserved,
                        uint64_t deadline, struct luvfio_device **ret)
{
        _cleanup_(luv_host_device_freep) struct luvfio_device *d = calloc(1, sizeof(*d));
        _cleanup_free_ char *variable = NULL;
        const char *config;

        if (!d)
                return -ENOMEM;

        d->options = options;
        d->preserved = preserved;
        d->deadline = deadline;
        d->address = strdup(address);
        if (!d->address)
                return -ENOMEM;
        for (char *p = d->address; *p; p++)
                *p = (char) tolower((unsigned char) *p);
        if (!luv_pci_address_valid(d->address))
                return -EINVAL;

        d->path = luv_strf("%s/bus/pci/devices/%s", options->sysfs, d->address);
        variable = luv_strf("LUVFIO_%s_CONFIG", options->plugin);
        if (!d->path || !variable)
                return -ENOMEM;
        for (char *p = variable; *p; p++)
                *p = *p == '-' ? '_' : (char) toupper((unsigned char) *p);

        config = options->config ? options->config : secure_getenv(variable);
        d->config_path = config ? strdup(config)
                                : luv_strf("%s/luvfiod/%s.json", LUVFIO_SYSCONFDIR, options->plugin);
        if (!d->config_path)
                return -ENOMEM;

        *ret = TAKE_PTR(d);
        return 0;
}

struct luvfio_device *luv_host_device_free(struct luvfio_device *d)
{
        if (!d)
                return NULL;

        for (size_t i = 0; i < d->n_findings; i++) {
                free(d->findings[i].id);
                free(d->findings[i].message);
                free(d->findings[i].remedy);
        }
        free(d->findings);
        free(d->reason);
        free(d->config_path);
        free(d->path);
        free(d->address);
        free(d);
        return NULL;
}

bool luv_host_device_present(const struct luvfio_device *d)
{
        return access(d->path, F_OK) >= 0;
}

static const char *host_address(const struct luvfio_device *d)
{
        return d->address;
}

static uint64_t host_time_left(const struct luvfio_device *d)
{
        return luv_usec_left(d->deadline);
}

static int host_simulated(const struct luvfio_device *d)
{
        return d->options->simulate;
}

static const char *host_config_file(const struct luvfio_device *d)
{
        return d->config_path;
}

/* The folder of a device, whose absence has an errno of its own. */
static int open_folder(const char *path)
{
        int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);

        if (fd < 0)
                return errno == ENOENT ? -ENODEV : negative_errno();
        return fd;
}

/*
 * Nothing outside of the device's folder can be reached: sysfs is full of links that lead out. Not by
 * openat2(2), which systemd's RestrictSUIDSGID= forbids.
 */
static int open_beneath(const char *folder, const char *path, int flags)
{
        _cleanup_close_ int dir_fd = -EBADF;
        _cleanup_free_ char *copy = NULL;
        char *name, *slash;
        int fd;

        if (!path || !*path || *path == '/')
                return -EINVAL;
        copy = strdup(path);
        if (!copy)
                return -ENOMEM;
        dir_fd = open_folder(folder);
        if (dir_fd < 0)
                return dir_fd;

        for (name = copy;; name = slash + 1) {
                struct stat st;

                slash = strchr(name, '/');
                if (slash)
                        *slash = 0;
                if (streq(name, ".."))
                        return -EINVAL;
                if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
                        return negative_errno();
                if (S_ISLNK(st.st_mode))
                        return -EXDEV;
                fd = openat(dir_fd, name, (slash ? O_PATH | O_DIRECTORY : flags) | O_NOFOLLOW | O_CLOEXEC);
                if (fd < 0)
                        return negative_errno();
                if (!slash)
                        return fd;
                (void) close(dir_fd);
                dir_fd = fd;
        }
}

static int read_config(const char *folder, unsigned offset, void *data, size_t size)
{
        _cleanup_close_ int fd = -EBADF;

        fd = open_beneath(folder, "config", O_RDONLY);
        if (fd < 0)
                return fd;
        return luv_pread_all(fd, data, size, (off_t) offset);
}

static int host_config_read(struct luvfio_device *d, unsigned offset, void *data, size_t size)
{
        return read_config(d->path, offset, data, size);
}

static int host_config_write(struct luvfio_device *d, unsigned offset, const void *data, size_t size)
{
        _cleanup_close_ int fd = -EBADF;
        ssize_t n;

        fd = open_beneath(d->path, "config", O_WRONLY);
        if (fd < 0)
                return fd;
        n = pwrite(fd, data, size, (off_t) offset);
        if (n < 0)
                return negative_errno();
        return (size_t) n == size ? 0 : -ENODATA;
}

static int host_bridge_read(struct luvfio_device *d, unsigned level, unsigned offset, void *data,
                            size_t size)
{
        _cleanup_free_ char *real = NULL;
        char *slash;

        if (level == 0)
                return -EINVAL;
        real = realpath(d->path, NULL);
        if (!real)
                return errno == ENOENT ? -ENODEV : negative_errno();

        /* A device's folder is in that of the bridge it is behind; the root's is no PCI address. */
        for (; level > 0; level--) {
                slash = strrchr(real, '/');
                if (!slash)
                        return -ENOENT;
                *slash = 0;
                slash = strrchr(real, '/');
                if (!slash || !luv_pci_address_valid(slash + 1))
                        return -ENOENT;
        }
        return read_config(real, offset, data, size);
}

/* FOLDER's file PATH as a string. */
static int read_attribute(const char *folder, const char *path, char *value, size_t size)
{
        _cleanup_close_ int fd = -EBADF;
        size_t n = 0;

        if (size == 0)
                return -EINVAL;
        fd = open_beneath(folder, path, O_RDONLY);
        if (fd < 0)
                return fd;

        for (;;) {
                ssize_t k = read(fd, value + n, size - n);

                if (k < 0) {
                        if (errno == EINTR)
                                continue;
                        return negative_errno();
                }
                if (k == 0)
                        break;
                n += (size_t) k;
                if (n == size)
                        return -EFBIG;
        }
        while (n > 0 && value[n - 1] == '\n')
                n--;
        value[n] = 0;
        return (int) MIN(n, (size_t) INT_MAX);
}

static int host_attr_read(struct luvfio_device *d, const char *path, char *value, size_t size)
{
        return read_attribute(d->path, path, value, size);
}

static int host_kernel_read(struct luvfio_device *d, const char *path, char *value, size_t size)
{
        _cleanup_free_ char *folder = luv_strf("%s/kernel", d->options->sysfs);

        return folder ? read_attribute(folder, path, value, size) : -ENOMEM;
}

static int write_fd(int fd, const char *value)
{
        size_t size = strlen(value);
        ssize_t n = write(fd, value, size);

        if (n < 0)
                return negative_errno();
        return (size_t) n == size ? 0 : -EIO;
}

static int host_attr_write(struct luvfio_device *d, const char *path, const char *value)
{
        _cleanup_close_ int fd = -EBADF;

        if (!value)
                return -EINVAL;
        fd = open_beneath(d->path, path, O_WRONLY | O_TRUNC);
        if (fd < 0)
                return fd;
        return write_fd(fd, value);
}

static int host_driver(struct luvfio_device *d, char *name, size_t size)
{
        _cleanup_close_ int folder_fd = -EBADF;
        char link[PATH_MAX], *base;
        ssize_t n;

        folder_fd = open_folder(d->path);
        if (folder_fd < 0)
                return folder_fd;
        n = readlinkat(folder_fd, "driver", link, sizeof(link) - 1);
        if (n < 0)
                return negative_errno();
        link[n] = 0;
        base = strrchr(link, '/');
        base = base ? base + 1 : link;
        if (strlen(base) >= size)
                return -EFBIG;
        memcpy(name, base, strlen(base) + 1);
        return 0;
}

static bool driver_name_valid(const char *s)
{
        return s && *s && strlen(s) <= NAME_MAX && !strchr(s, '/') && !streq(s, ".") && !streq(s, "..");
}

static int host_driver_override(struct luvfio_device *d, const char *driver)
{
        _cleanup_free_ char *line = NULL;

        if (driver && !driver_name_valid(driver))
                return -EINVAL;
        /* An empty line takes the override away. */
        line = luv_strf("%s\n", strempty(driver));
        return line ? host_attr_write(d, "driver_override", line) : -ENOMEM;
}

/* Writes the device's address into a file of the PCI bus. */
static int tell_bus(struct luvfio_device *d, const char *driver, const char *file)
{
        _cleanup_free_ char *path = NULL;
        _cleanup_close_ int fd = -EBADF;

        if (driver)
                path = luv_strf("%s/bus/pci/drivers/%s/%s", d->options->sysfs, driver, file);
        else
                path = luv_strf("%s/bus/pci/%s", d->options->sysfs, file);
        if (!path)
                return -ENOMEM;
        fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC | O_NOCTTY);
        if (fd < 0)
                return negative_errno();
        return write_fd(fd, d->address);
}

static int host_bind(struct luvfio_device *d, const char *driver)
{
        if (!driver_name_valid(driver))
                return -EINVAL;
        if (!luv_host_device_present(d))
                return -ENODEV;
        return tell_bus(d, driver, "bind");
}

static int host_unbind(struct luvfio_device *d)
{
        char driver[NAME_MAX + 1];
        int r;

        r = host_driver(d, driver, sizeof(driver));
        if (r == -ENOENT)
                return 0;
        if (r < 0)
                return r;
        return tell_bus(d, driver, "unbind");
}

static int host_probe(struct luvfio_device *d)
{
        if (!luv_host_device_present(d))
                return -ENODEV;
        return tell_bus(d, NULL, "drivers_probe");
}

/* The kernel's own uevents: udev may not run yet, or have stopped. */
static int open_uevents(void)
{
        const struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = 1 };
        int fd;

        fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);
        if (fd < 0)
                return negative_errno();
        if (bind(fd, (const struct sockaddr *) &address, sizeof(address)) < 0) {
                int r = negative_errno();

                (void) close(fd);
                return r;
        }
        return fd;
}

typedef bool (*WaitCondition)(struct luvfio_device *d, const char *argument);

static int wait_for(struct luvfio_device *d, WaitCondition condition, const char *argument, uint64_t timeout)
{
        _cleanup_close_ int uevent_fd = -EBADF;
        uint64_t now, end;

        if (condition(d, argument))
                return 0;

        /* Before it is looked at again, so that nothing can happen in between. Without it the tick has to
         * do. */
        uevent_fd = open_uevents();

        now = luv_now_usec();
        end = timeout < UINT64_MAX - now ? now + timeout : UINT64_MAX;
        end = MIN(end, d->deadline);
        for (;;) {
                struct pollfd p = { .fd = uevent_fd, .events = POLLIN };
                struct timespec tick;
                char buffer[64];
                uint64_t left;

                if (condition(d, argument))
                        return 0;
                now = luv_now_usec();
                if (now >= end)
                        return -ETIME;
                left = MIN(end - now, WAIT_TICK_USEC);
                tick.tv_sec = 0;
                tick.tv_nsec = (long) (left * NSEC_PER_USEC);
                if (ppoll(&p, 1, &tick, NULL) > 0 && uevent_fd >= 0)
                        while (recv(uevent_fd, buffer, sizeof(buffer), MSG_TRUNC) >= 0)
                                ;
        }
}

static bool path_exists(struct luvfio_device *d, const char *path)
{
        int fd;

        if (!*path)
                return luv_host_device_present(d);
        fd = open_beneath(d->path, path, O_PATH);
        if (fd < 0)
                return fd == -EXDEV;
        (void) close(fd);
        return true;
}

static bool driver_is(struct luvfio_device *d, const char *driver)
{
        char name[NAME_MAX + 1];

        return host_driver(d, name, sizeof(name)) >= 0 && streq(name, driver);
}

static int host_wait_path(struct luvfio_device *d, const char *path, uint64_t timeout)
{
        if (!path || *path == '/' || strstr(path, ".."))
                return -EINVAL;
        return wait_for(d, path_exists, path, timeout);
}

static int host_wait_driver(struct luvfio_device *d, const char *driver, uint64_t timeout)
{
        return driver_name_valid(driver) ? wait_for(d, driver_is, driver, timeout) : -EINVAL;
}

/*
 * The handlers of one interrupt. /proc/interrupts has them too, but for all devices, and in columns that
 * cannot be told apart without doubt.
 */
static int interrupt_handlers(struct luvfio_device *d, unsigned irq, bool all, luvfio_interrupt_fn fn,
                              void *userdata)
{
        _cleanup_free_ char *path = NULL, *actions = NULL, *tag = NULL;
        char *save = NULL;
        int r;

        path = luv_strf("%s/kernel/irq/%u/actions", d->options->sysfs, irq);
        tag = luv_strf("(%s)", d->address);
        if (!path || !tag)
                return -ENOMEM;
        r = luv_read_line_file(AT_FDCWD, path, &actions);
        if (r == -ENOENT)
                return 0; /* no such interrupt, or it is being taken down */
        if (r < 0)
                return r;

        for (char *name = strtok_r(actions, ",", &save); name; name = strtok_r(NULL, ",", &save)) {
                if (!all && !strstr(name, tag))
                        continue;
                r = fn(userdata, irq, name);
                if (r != 0)
                        return r;
        }
        return 0;
}

static int host_interrupts(struct luvfio_device *d, luvfio_interrupt_fn fn, void *userdata)
{
        _cleanup_(closedirp) DIR *vectors = NULL;
        _cleanup_free_ char *known = NULL;
        char line[16];
        uint64_t irq;
        int fd, r;

        if (!luv_host_device_present(d))
                return -ENODEV;
        /* Without this folder "no handler" would be said of every device. */
        known = luv_strf("%s/kernel/irq", d->options->sysfs);
        if (!known)
                return -ENOMEM;
        if (access(known, F_OK) < 0)
                return -EOPNOTSUPP;

        /* INTx can be shared with others. */
        r = host_attr_read(d, "irq", line, sizeof(line));
        if (r < 0 && r != -ENOENT)
                return r;
        if (r > 0 && luv_parse_u64(line, &irq) >= 0 && irq > 0 && irq <= UINT_MAX) {
                r = interrupt_handlers(d, (unsigned) irq, false, fn, userdata);
                if (r != 0)
                        return r;
        }

        fd = open_beneath(d->path, "msi_irqs", O_RDONLY | O_DIRECTORY);
        if (fd == -ENOENT)
                return 0;
        if (fd < 0)
                return fd;
        vectors = fdopendir(fd);
        if (!vectors) {
                r = negative_errno();
                (void) close(fd);
                return r;
        }
        for (;;) {
                struct dirent *e;

                errno = 0;
                e = readdir(vectors);
                if (!e)
                        return errno > 0 ? -errno : 0;
                if (luv_parse_u64(e->d_name, &irq) < 0 || irq > UINT_MAX)
                        continue;
                r = interrupt_handlers(d, (unsigned) irq, true, fn, userdata);
                if (r != 0)
                        return r;
        }
}

_printf_(3, 4) static int host_set_reason(struct luvfio_device *d, int error, const char *format, ...)
{
        va_list ap;
        char *reason;

        va_start(ap, format);
        reason = luv_strfv(format, ap);
        va_end(ap);
        if (reason) {
                clean_text(reason);
                free(d->reason);
                d->reason = reason;
        }
        return error;
}

_printf_(5, 6) static int host_add_finding(struct luvfio_device *d, enum luvfio_severity severity,
                                           const char *id, const char *remedy, const char *format, ...)
{
        HostFinding *findings, finding = { .severity = severity };
        va_list ap;

        if (!id || !format || severity < LUVFIO_NOTE || severity > LUVFIO_BLOCKER)
                return -EINVAL;
        if (d->n_findings >= LUVFIO_FINDINGS_MAX)
                return -E2BIG;
        findings = reallocarray(d->findings, d->n_findings + 1, sizeof(*findings));
        if (!findings)
                return -ENOMEM;
        d->findings = findings;

        va_start(ap, format);
        finding.message = luv_strfv(format, ap);
        va_end(ap);
        if (!finding.message)
                return -ENOMEM;
        finding.id = strdup(id);
        finding.remedy = remedy ? strdup(remedy) : NULL;
        if (!finding.id || (remedy && !finding.remedy)) {
                free(finding.id);
                free(finding.remedy);
                free(finding.message);
                return -ENOMEM;
        }
        clean_text(finding.id);
        clean_text(finding.message);
        if (finding.remedy)
                clean_text(finding.remedy);
        findings[d->n_findings++] = finding;
        return 0;
}

_printf_(3, 4) static void host_log(const struct luvfio_device *d, enum luvfio_log_level level,
                                    const char *format, ...)
{
        const LogFields fields = { .plugin = d->options->plugin, .device = d->address };
        _cleanup_free_ char *message = NULL;
        va_list ap;

        va_start(ap, format);
        message = luv_strfv(format, ap);
        va_end(ap);
        if (!message)
                return;
        clean_text(message);
        luv_log_struct((int) level, &fields, "%s: %s: %s", d->options->plugin, d->address, message);
}

static int host_preserved(struct luvfio_device *d, uint64_t *ret)
{
        if (d->preserved == UINT64_MAX)
                return -ENODATA;
        *ret = d->preserved;
        return 0;
}

const struct luvfio_host luv_host_callbacks = {
        .size = sizeof(struct luvfio_host),
        .address = host_address,
        .time_left = host_time_left,
        .simulated = host_simulated,
        .config_file = host_config_file,
        .config_read = host_config_read,
        .config_write = host_config_write,
        .bridge_read = host_bridge_read,
        .attr_read = host_attr_read,
        .attr_write = host_attr_write,
        .kernel_read = host_kernel_read,
        .driver = host_driver,
        .driver_override = host_driver_override,
        .bind = host_bind,
        .unbind = host_unbind,
        .probe = host_probe,
        .wait_path = host_wait_path,
        .wait_driver = host_wait_driver,
        .interrupts = host_interrupts,
        .set_reason = host_set_reason,
        .add_finding = host_add_finding,
        .log = host_log,
        .preserved = host_preserved,
};
