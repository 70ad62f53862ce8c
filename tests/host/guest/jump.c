/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Jumps into another kernel: kexec_file_load(2) and reboot(2). The exit code is the errno of what failed, so
 * that a script can tell a refusal (EBUSY, 16) from anything else.
 */

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/reboot.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#ifndef KEXEC_FILE_UNLOAD
#define KEXEC_FILE_UNLOAD 1
#define KEXEC_FILE_NO_INITRAMFS 4
#endif

static void usage(FILE *f)
{
        fputs("Usage: jump [OPTIONS] KERNEL\n"
              "       jump --exec | --unload\n"
              "\n"
              "  -i, --initrd FILE    initrd (default: /boot/initrd, if there is one)\n"
              "  -n, --no-initrd      none\n"
              "  -c, --cmdline TEXT   command line (default: this kernel's)\n"
              "  -a, --append TEXT    add to the command line\n"
              "  -l, --load           load only\n"
              "  -e, --exec           jump into what is loaded\n"
              "  -u, --unload         unload\n"
              "  -m, --mark N         leave mark N in QEMU's trace right before reboot(2)\n",
              f);
}

/* What this boot was told by the test host's own first boot does not go to the next kernel. */
static bool passes_on(const char *word)
{
        return strncmp(word, "init=", 5) != 0 && strncmp(word, "initrd=", 7) != 0 &&
               strncmp(word, "BOOT_IMAGE=", 11) != 0;
}

static int read_cmdline(char *buf, size_t size)
{
        char raw[4096], *word, *save = NULL;
        ssize_t n;
        int fd;

        fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        n = read(fd, raw, sizeof(raw) - 1);
        close(fd);
        if (n < 0)
                return -EIO;
        raw[n] = 0;

        buf[0] = 0;
        for (word = strtok_r(raw, " \n", &save); word; word = strtok_r(NULL, " \n", &save)) {
                if (!passes_on(word))
                        continue;
                if (strlen(buf) + strlen(word) + 2 > size)
                        return -E2BIG;
                if (buf[0])
                        strcat(buf, " ");
                strcat(buf, word);
        }
        return 0;
}

static int failed(const char *what, int error)
{
        fprintf(stderr, "jump: %s: %s\n", what, strerror(error));
        return error;
}

static int unload(void)
{
        if (syscall(SYS_kexec_file_load, -1, -1, 0UL, NULL, (unsigned long) KEXEC_FILE_UNLOAD) < 0)
                return failed("cannot unload the kernel", errno);
        return 0;
}

static int load(const char *kernel, const char *initrd, const char *cmdline)
{
        unsigned long flags = 0;
        int kernel_fd, initrd_fd = -1;

        kernel_fd = open(kernel, O_RDONLY | O_CLOEXEC);
        if (kernel_fd < 0)
                return failed(kernel, errno);
        if (initrd) {
                initrd_fd = open(initrd, O_RDONLY | O_CLOEXEC);
                if (initrd_fd < 0)
                        return failed(initrd, errno);
        } else
                flags |= KEXEC_FILE_NO_INITRAMFS;

        if (syscall(SYS_kexec_file_load, kernel_fd, initrd_fd, strlen(cmdline) + 1, cmdline, flags) < 0)
                return failed("cannot load the kernel", errno);
        return 0;
}

/* As mark does; here, so that nothing comes between it and reboot(2). */
static int open_marker(void)
{
        int fd = open("/sys/bus/pci/devices/0000:00:1e.0/config", O_WRONLY | O_CLOEXEC);

        return fd < 0 ? -errno : fd;
}

static int execute(long mark)
{
        uint8_t byte = (uint8_t) mark;
        int error, fd = -1;

        if (mark > 0) {
                fd = open_marker();
                if (fd < 0)
                        return failed("the marker device", -fd);
        }
        sync();
        /* What was printed so far would be lost with this kernel's buffers. */
        (void) tcdrain(STDOUT_FILENO);
        (void) tcdrain(STDERR_FILENO);
        if (fd >= 0 && pwrite(fd, &byte, 1, 12) != 1)
                return failed("the marker device", errno);
        syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, NULL);
        error = errno;
        return failed("the kernel refused to jump", error);
}

int main(int argc, char **argv)
{
        static const struct option options[] = {
                { "initrd", required_argument, NULL, 'i' },  { "no-initrd", no_argument, NULL, 'n' },
                { "cmdline", required_argument, NULL, 'c' }, { "append", required_argument, NULL, 'a' },
                { "load", no_argument, NULL, 'l' },          { "exec", no_argument, NULL, 'e' },
                { "unload", no_argument, NULL, 'u' },        { "mark", required_argument, NULL, 'm' },
                { "help", no_argument, NULL, 'h' },          {},
        };
        const char *initrd = access("/boot/initrd", R_OK) == 0 ? "/boot/initrd" : NULL;
        bool load_only = false, exec_only = false;
        char cmdline[4096] = "";
        const char *append = NULL;
        bool own_cmdline = false;
        long mark = 0;
        int c, r;

        while ((c = getopt_long(argc, argv, "i:nc:a:leum:h", options, NULL)) >= 0)
                switch (c) {
                case 'i':
                        initrd = optarg;
                        break;
                case 'n':
                        initrd = NULL;
                        break;
                case 'c':
                        if (strlen(optarg) >= sizeof(cmdline))
                                return failed("--cmdline", E2BIG);
                        strcpy(cmdline, optarg);
                        own_cmdline = true;
                        break;
                case 'a':
                        append = optarg;
                        break;
                case 'l':
                        load_only = true;
                        break;
                case 'e':
                        exec_only = true;
                        break;
                case 'u':
                        return unload();
                case 'm':
                        mark = strtol(optarg, NULL, 10);
                        if (mark < 1 || mark > 255)
                                return failed("--mark", EINVAL);
                        break;
                case 'h':
                        usage(stdout);
                        return 0;
                default:
                        usage(stderr);
                        return EINVAL;
                }

        if (exec_only)
                return execute(mark);
        if (optind + 1 != argc) {
                usage(stderr);
                return EINVAL;
        }

        if (!own_cmdline) {
                r = read_cmdline(cmdline, sizeof(cmdline));
                if (r < 0)
                        return failed("/proc/cmdline", -r);
        }
        if (append) {
                if (strlen(cmdline) + strlen(append) + 2 > sizeof(cmdline))
                        return failed("--append", E2BIG);
                strcat(cmdline, " ");
                strcat(cmdline, append);
        }

        r = load(argv[optind], initrd, cmdline);
        if (r != 0 || load_only)
                return r;
        return execute(mark);
}
