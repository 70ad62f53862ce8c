/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/magic.h>
#include <linux/vfio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include <luvfio/plugin.h>

#include "luo/fd-identify.h"
#include "util/io.h"
#include "util/string-util.h"

#ifndef F_DUPFD_QUERY
#define F_DUPFD_QUERY 1027
#endif
#ifndef HUGETLBFS_MAGIC
#define HUGETLBFS_MAGIC 0x958458f6
#endif

/* Of our kernel series. */
#define VFIO_DEVICE_FEATURE_LIVEUPDATE 0x4c55u

static const char *const luv_fd_kind_table[_FD_KIND_MAX] = {
        [FD_KIND_MEMFD] = "memfd",
        [FD_KIND_IOMMUFD] = "iommufd",
        [FD_KIND_VFIO] = "vfio",
        [FD_KIND_STATE] = "state",
};
DEFINE_STRING_TABLE(luv_fd_kind, FdKind);

static const char *const luv_fd_outcome_table[_FD_OUTCOME_MAX] = {
        [FD_OUTCOME_PRESERVED] = "preserved",
        [FD_OUTCOME_RESET] = "reset",
        [FD_OUTCOME_REBUILT] = "rebuilt",
        [FD_OUTCOME_RUNNING] = "running",
};
DEFINE_STRING_TABLE(luv_fd_outcome, FdOutcome);

#define SIM_PREFIX "/memfd:luvfio-sim:"
#define SIM_SUFFIX " (deleted)"
#define SIM_RUNNING "+running"
#define SIM_PRESERVED "+preserved"

/* Of an iommufd that was retrieved from LUO, which has no character device behind it. */
#define IOMMUFD_RETRIEVED "anon_inode:[iommufd]"

static int fd_path(int fd, char **ret)
{
        char name[48], path[4096];
        ssize_t n;
        char *s;

        (void) snprintf(name, sizeof(name), "/proc/self/fd/%i", fd);
        n = readlink(name, path, sizeof(path));
        if (n < 0)
                return negative_errno();
        s = strndup(path, (size_t) n);
        if (!s)
                return -ENOMEM;
        *ret = s;
        return 0;
}

static int set_device(FdIdentity *i, const char *address, char **ret_reason)
{
        if (!luv_pci_address_valid(address) || strlen(address) >= sizeof(i->device))
                return luv_reason(ret_reason, -EOPNOTSUPP, "is a VFIO device that is no PCI device (%s)",
                                  address);
        (void) snprintf(i->device, sizeof(i->device), "%s", address);
        i->kind = FD_KIND_VFIO;
        return 0;
}

/* Takes END away from the end of S; false if it is not there. */
static bool cut_end(char *s, const char *end)
{
        size_t n = strlen(s), k = strlen(end);

        if (n < k || !streq(s + n - k, end))
                return false;
        s[n - k] = 0;
        return true;
}

/* 1 if the memfd stands for something else in a simulation. */
static int identify_simulated(const char *path, FdIdentity *i, char **ret_reason)
{
        _cleanup_free_ char *name = NULL;
        const char *what, *device;
        int r;

        what = startswith(path, SIM_PREFIX);
        if (!what)
                return 0;
        name = strdup(what);
        if (!name)
                return -ENOMEM;
        cut_end(name, SIM_SUFFIX);
        cut_end(name, SIM_PRESERVED);

        if (streq(name, "iommufd")) {
                i->kind = FD_KIND_IOMMUFD;
                return 1;
        }
        cut_end(name, SIM_RUNNING);
        device = startswith(name, "vfio:");
        if (!device)
                return luv_reason(ret_reason, -EOPNOTSUPP,
                                  "is a memfd named luvfio-sim:%s, which stands for nothing", name);
        r = set_device(i, device, ret_reason);
        return r < 0 ? r : 1;
}

static int identify_regular(int fd, const struct stat *st, bool simulated, FdIdentity *i, char **ret_reason)
{
        _cleanup_free_ char *path = NULL;
        struct statfs fs;
        int r;

        if (fstatfs(fd, &fs) < 0)
                return negative_errno();
        if ((unsigned long) fs.f_type == HUGETLBFS_MAGIC)
                return luv_reason(ret_reason, -EOPNOTSUPP, "is memory of huge pages (hugetlb)");
        r = fd_path(fd, &path);
        if (r < 0)
                return r;
        if ((unsigned long) fs.f_type != TMPFS_MAGIC)
                return luv_reason(ret_reason, -EOPNOTSUPP, "is a file on a disk or the like (%s)", path);
        /* What has a name could be changed by others. LUO asks the same. */
        if (st->st_nlink > 0)
                return luv_reason(ret_reason, -EOPNOTSUPP, "is a file with a name in a tmpfs (%s), no memfd",
                                  path);

        if (simulated) {
                r = identify_simulated(path, i, ret_reason);
                if (r != 0)
                        return MIN(r, 0);
        }
        i->kind = FD_KIND_MEMFD;
        i->size = (uint64_t) st->st_size;
        i->allocated = (uint64_t) st->st_blocks * 512;
        return 0;
}

/* What the kernel says of a file in its fdinfo, in the first line that begins with FIELD. -ENOENT if in
 * none. */
static int fdinfo_field(int fd, const char *field, char **ret)
{
        _cleanup_free_ char *text = NULL;
        char path[48], *line, *rest;
        int r;

        (void) snprintf(path, sizeof(path), "/proc/self/fdinfo/%i", fd);
        r = luv_read_line_file(AT_FDCWD, path, &text);
        if (r < 0)
                return r;
        rest = text;
        while ((line = strsep(&rest, "\n"))) {
                const char *value = startswith(line, field);

                if (!value)
                        continue;
                *ret = strdup(value + strspn(value, " \t"));
                return *ret ? 0 : -ENOMEM;
        }
        return -ENOENT;
}

/* The PCI address of a VFIO device's file, by the kernel's word. -ENOENT if it is none. */
static int vfio_address(int fd, char **ret)
{
        _cleanup_free_ char *syspath = NULL;
        int r;

        r = fdinfo_field(fd, "vfio-device-syspath:", &syspath);
        if (r < 0)
                return r;
        *ret = strdup(strrchr(syspath, '/') ? strrchr(syspath, '/') + 1 : syspath);
        return *ret ? 0 : -ENOMEM;
}

static int identify_character(const struct stat *st, FdIdentity *i, char **ret_reason)
{
        char name[64], target[4096];
        char *base, *parent;
        ssize_t n;

        (void) snprintf(name, sizeof(name), "/sys/dev/char/%u:%u", major(st->st_rdev), minor(st->st_rdev));
        n = readlink(name, target, sizeof(target) - 1);
        if (n < 0)
                return luv_reason(ret_reason, -EOPNOTSUPP,
                                  "is a character device that sysfs does not know (%u:%u)",
                                  major(st->st_rdev), minor(st->st_rdev));
        target[n] = 0;

        /* .../virtual/misc/iommu, .../0000:00:03.0/vfio-dev/vfio0 */
        base = strrchr(target, '/');
        base = base ? base + 1 : target;
        if (base - target >= (ptrdiff_t) STRLEN("/misc/") && startswith(base - STRLEN("/misc/"), "/misc/") &&
            streq(base, "iommu")) {
                i->kind = FD_KIND_IOMMUFD;
                return 0;
        }
        parent = strstr(target, "/vfio-dev/");
        if (!parent)
                return luv_reason(ret_reason, -EOPNOTSUPP, "is the character device %s", base);
        *parent = 0;
        base = strrchr(target, '/');
        return set_device(i, base ? base + 1 : target, ret_reason);
}

static int identify_vfio(int fd, const struct stat *st, const char *address, FdIdentity *i,
                         char **ret_reason)
{
        struct vfio_device_detach_iommufd_pt detach = { .argsz = 0 };

        /*
         * Without a character device behind it, it was retrieved from LUO, or opened by a VFIO group, and
         * the latter cannot be preserved. Only the former knows this ioctl, which does nothing if it is so
         * short.
         */
        if (!S_ISCHR(st->st_mode) && ioctl(fd, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach) < 0 &&
            errno == ENOTTY)
                return luv_reason(ret_reason, -EOPNOTSUPP,
                                  "is the VFIO device %s opened by its group, not by /dev/vfio/devices",
                                  address);
        return set_device(i, address, ret_reason);
}

static const char *mode_to_string(mode_t mode)
{
        switch (mode & S_IFMT) {
        case S_IFDIR:
                return "a folder";
        case S_IFIFO:
                return "a pipe";
        case S_IFSOCK:
                return "a socket";
        case S_IFBLK:
                return "a block device";
        case S_IFLNK:
                return "a symbolic link";
        default:
                return NULL;
        }
}

int luv_fd_identify(int fd, bool simulated, FdIdentity *ret, char **ret_reason)
{
        _cleanup_free_ char *address = NULL, *path = NULL;
        FdIdentity i = {};
        const char *what;
        struct stat st;
        int r, flags;

        flags = fcntl(fd, F_GETFL);
        if (flags < 0 || fstat(fd, &st) < 0)
                return luv_reason(ret_reason, negative_errno(), "is no open file descriptor");
        if (flags & O_PATH)
                return luv_reason(ret_reason, -EOPNOTSUPP, "is a mere path (O_PATH)");
        i.dev = st.st_dev;
        i.ino = st.st_ino;

        if (S_ISREG(st.st_mode)) {
                r = identify_regular(fd, &st, simulated, &i, ret_reason);
        } else {
                r = vfio_address(fd, &address);
                if (r >= 0)
                        r = identify_vfio(fd, &st, address, &i, ret_reason);
                else if (r == -ENOENT && S_ISCHR(st.st_mode))
                        r = identify_character(&st, &i, ret_reason);
                else if (r == -ENOENT) {
                        what = mode_to_string(st.st_mode);
                        if (!what && fd_path(fd, &path) >= 0)
                                what = path;
                        if (what && streq(what, IOMMUFD_RETRIEVED)) {
                                i.kind = FD_KIND_IOMMUFD;
                                r = 0;
                        } else
                                r = luv_reason(ret_reason, -EOPNOTSUPP, "is %s",
                                               what ? what : "of no kind that is known");
                }
        }
        if (r < 0)
                return r;
        *ret = i;
        return 0;
}

static bool is_simulated(int fd, const char *promise)
{
        _cleanup_free_ char *path = NULL;

        return fd_path(fd, &path) >= 0 && startswith(path, SIM_PREFIX) && cut_end(path, SIM_SUFFIX) &&
               cut_end(path, promise);
}

static int feature_liveupdate(int fd, uint32_t operation, uint64_t *preserved)
{
        /* What it is about is behind the request. */
        union {
                struct vfio_device_feature feature;
                struct {
                        uint32_t argsz, flags;
                        uint64_t preserved;
                } data;
        } u = {
                .data = {
                        .argsz = sizeof(u),
                        .flags = operation | VFIO_DEVICE_FEATURE_LIVEUPDATE,
                        .preserved = *preserved,
                },
        };

        if (ioctl(fd, VFIO_DEVICE_FEATURE, &u) < 0)
                return negative_errno();
        *preserved = u.data.preserved;
        return 0;
}

int luv_fd_latch_interrupts(int fd, bool latch)
{
        uint64_t preserved = latch ? LUVFIO_PRESERVED_INTERRUPTS : 0;

        return feature_liveupdate(fd, VFIO_DEVICE_FEATURE_SET, &preserved);
}

uint64_t luv_fd_preserved(int fd)
{
        uint64_t preserved = 0;

        if (feature_liveupdate(fd, VFIO_DEVICE_FEATURE_GET, &preserved) >= 0)
                return preserved;
        if (is_simulated(fd, SIM_RUNNING))
                return LUVFIO_PRESERVED_OWNER | LUVFIO_PRESERVED_STATE | LUVFIO_PRESERVED_DMA;
        if (is_simulated(fd, SIM_PRESERVED))
                return LUVFIO_PRESERVED_OWNER | LUVFIO_PRESERVED_STATE | LUVFIO_PRESERVED_DMA |
                       LUVFIO_PRESERVED_IOMMU;
        /* Another kernel, or the device is not bound to an iommufd (yet). */
        return FD_PRESERVED_UNKNOWN;
}

bool luv_fd_preserved_running(uint64_t preserved)
{
        const uint64_t wanted = LUVFIO_PRESERVED_STATE | LUVFIO_PRESERVED_DMA;

        return preserved != FD_PRESERVED_UNKNOWN && (preserved & wanted) == wanted;
}

int luv_fd_preserved_to_strv(uint64_t preserved, bool set, char ***ret)
{
        static const struct {
                uint64_t bit;
                const char *name;
        } bits[] = {
                { LUVFIO_PRESERVED_OWNER, "owner" },
                { LUVFIO_PRESERVED_STATE, "state" },
                { LUVFIO_PRESERVED_DMA, "dma" },
                { LUVFIO_PRESERVED_IOMMU, "iommu" },
                { LUVFIO_PRESERVED_INTERRUPTS, "interrupts" },
                { LUVFIO_PRESERVED_SRIOV, "sriov" },
        };
        _cleanup_strv_ char **l = calloc(1, sizeof(*l));
        int r;

        if (!l)
                return -ENOMEM;
        for (size_t i = 0; preserved != FD_PRESERVED_UNKNOWN && i < ELEMENTSOF(bits); i++) {
                if (((preserved & bits[i].bit) != 0) != set)
                        continue;
                r = luv_strv_extend(&l, bits[i].name);
                if (r < 0)
                        return r;
        }
        *ret = TAKE_PTR(l);
        return 0;
}

char *luv_fd_preserved_list(uint64_t preserved, bool set)
{
        _cleanup_strv_ char **l = NULL;

        if (luv_fd_preserved_to_strv(preserved, set, &l) < 0)
                return NULL;
        return *l ? luv_strv_join(l, ", ") : strdup("nothing");
}

int luv_iommufd_blocker(int fd, char **ret)
{
        return fdinfo_field(fd, "liveupdate-blocked:", ret);
}

/* A kernel that preserves iommufds says so of each. */
static bool iommufd_is_preserved(int fd)
{
        _cleanup_free_ char *word = NULL;

        return fdinfo_field(fd, "liveupdate:", &word) >= 0 || is_simulated(fd, SIM_PRESERVED);
}

FdOutcome luv_device_outcome(uint64_t preserved)
{
        if (!luv_fd_preserved_running(preserved))
                return FD_OUTCOME_RESET;
        return preserved & LUVFIO_PRESERVED_IOMMU ? FD_OUTCOME_PRESERVED : FD_OUTCOME_RUNNING;
}

FdOutcome luv_fd_outcome(FdKind kind, int fd)
{
        switch (kind) {
        case FD_KIND_MEMFD:
        case FD_KIND_STATE:
                return FD_OUTCOME_PRESERVED;
        case FD_KIND_VFIO:
                return luv_device_outcome(luv_fd_preserved(fd));
        default:
                return iommufd_is_preserved(fd) ? FD_OUTCOME_PRESERVED : FD_OUTCOME_REBUILT;
        }
}

int luv_fd_same(int a, int b)
{
        long r;

        if (fcntl(a, F_GETFD) < 0 || fcntl(b, F_GETFD) < 0)
                return negative_errno();
        if (a == b)
                return 1;
        r = fcntl(a, F_DUPFD_QUERY, b);
        if (r >= 0)
                return r > 0;
        if (errno != EINVAL)
                return negative_errno();
        /* Kernels before 6.10. */
        r = syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, (unsigned long) a, (unsigned long) b);
        if (r < 0)
                return negative_errno();
        return r == 0;
}
