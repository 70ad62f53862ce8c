/* SPDX-License-Identifier: LGPL-2.1-or-later */

/*
 * Before the C library of luvfiod and its worker (LD_PRELOAD): FINISH of a session answers EBUSY, if its
 * name begins as /etc/rogue/luvfiod.orders says; as the kernel does while a file cannot be finished.
 */

#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

/* Newer than the headers that this is compiled with. */
struct session_name {
        uint32_t size, reserved;
        char name[64];
};
#define SESSION_FINISH _IO(0xba, 0x42)
#define SESSION_GET_NAME _IO(0xba, 0x43)

typedef int (*Ioctl)(int fd, unsigned long request, ...);

static bool is_busy(Ioctl next, int fd)
{
        struct session_name session = { .size = sizeof(session) };
        bool found = false;
        char line[80];
        FILE *f;

        if (next(fd, SESSION_GET_NAME, &session) < 0)
                return false;
        f = fopen("/etc/rogue/luvfiod.orders", "re");
        while (f && !found && fgets(line, sizeof(line), f)) {
                line[strcspn(line, "\n")] = 0;
                found = line[0] && strncmp(session.name, line, strlen(line)) == 0;
        }
        if (f)
                fclose(f);
        return found;
}

int ioctl(int fd, unsigned long request, ...)
{
        Ioctl next = (Ioctl) dlsym(RTLD_NEXT, "ioctl");
        void *argument;
        va_list ap;

        va_start(ap, request);
        argument = va_arg(ap, void *);
        va_end(ap);
        if (request == SESSION_FINISH && is_busy(next, fd)) {
                errno = EBUSY;
                return -1;
        }
        return next(fd, request, argument);
}
