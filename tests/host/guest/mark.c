/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * mark [-t] N (1 to 255): leaves a mark in QEMU's trace, in its order and with its time: a config write to a
 * device that is there for nothing else, "pci_cfg_write pci-testdev 00:1e.0 @0xc <- 0xN". With -t it prints
 * CLOCK_BOOTTIME of that moment in microseconds, which ties this boot's clock to the one outside.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CONFIG "/sys/bus/pci/devices/0000:00:1e.0/config"

int main(int argc, char **argv)
{
        bool tell = argc == 3 && strcmp(argv[1], "-t") == 0;
        const char *number = argv[argc - 1];
        struct timespec t;
        uint8_t byte;
        char *end;
        long n;
        int fd;

        if (argc != (tell ? 3 : 2)) {
                fputs("Usage: mark [-t] N\n", stderr);
                return 2;
        }
        n = strtol(number, &end, 10);
        if (*end || n < 1 || n > 255) {
                fprintf(stderr, "mark: %s is not a number from 1 to 255\n", number);
                return 2;
        }
        byte = (uint8_t) n;
        fd = open(CONFIG, O_WRONLY | O_CLOEXEC);
        if (fd < 0 || pwrite(fd, &byte, 1, 12) != 1) {
                fprintf(stderr, "mark: %s: %s\n", CONFIG, strerror(errno));
                return 1;
        }
        clock_gettime(CLOCK_BOOTTIME, &t);
        if (tell)
                printf("%lld\n", (long long) t.tv_sec * 1000000 + t.tv_nsec / 1000);
        return 0;
}
