/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * PID 1 of the test guest: looks at itself and says so on the console, one line at a time, so that the log
 * tells afterwards whether anything happened to the guest that it could see. See README.md.
 */

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define DEVICES_MAX 4
#define JOBS_MAX 16
#define BLOCK 4096
/* The end of each disk, where fio is not. */
#define PROBE_BLOCKS 256
/* Frames' numbers that are told apart, from the first one on. */
#define FRAMES_MAX (1U << 22)

typedef struct Disk {
        char name[32];
        int fd;
        uint64_t size;
        _Atomic uint64_t probes;
        _Atomic int64_t since;    /* when the probe that is under way began, or 0 */
        _Atomic int64_t max_late; /* in this period */
} Disk;

typedef struct Net {
        char name[IF_NAMESIZE];
        int fd;
        uint8_t *seen;
        bool any;
        uint64_t base, highest;
        _Atomic uint64_t received, distinct, duplicate, corrupted, old, span;
} Net;

static Disk disks[DEVICES_MAX];
static Net nets[DEVICES_MAX];
static size_t n_disks, n_nets;
static long period_ms = 100, probe_ms = 20, fio_iops, fio_jobs = 2, fio_depth = 8;
static char boot_id[64];

static int64_t clock_ns(clockid_t clock)
{
        struct timespec t;

        clock_gettime(clock, &t);
        return (int64_t) t.tv_sec * 1000000000 + t.tv_nsec;
}

static void sleep_until(int64_t ns)
{
        struct timespec t = { .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 };

        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
                ;
}

/* A line by one write, so that no other comes between. */
__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
        char line[512];
        va_list ap;
        int n;

        va_start(ap, format);
        n = vsnprintf(line, sizeof(line) - 1, format, ap);
        va_end(ap);
        if (n < 0)
                return;
        if (n > (int) sizeof(line) - 2)
                n = sizeof(line) - 2;
        line[n++] = '\n';
        while (write(STDOUT_FILENO, line, (size_t) n) < 0 && errno == EINTR)
                ;
}

static void start(void *(*routine)(void *), void *argument)
{
        pthread_t thread;
        int r;

        r = pthread_create(&thread, NULL, routine, argument);
        if (r)
                say("ERROR pthread_create: %s", strerror(r));
        else
                pthread_detach(thread);
}

static void read_file(const char *path, char *buf, size_t size)
{
        ssize_t n = 0;
        int fd;

        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
                n = read(fd, buf, size - 1);
                close(fd);
        }
        buf[n > 0 ? n : 0] = '\0';
        buf[strcspn(buf, "\n")] = '\0';
}

/* ---- who it is, and that it lives
 * -------------------------------------------------------------------------- */

static void say_id(void)
{
        char uptime[64];

        read_file("/proc/uptime", uptime, sizeof(uptime));
        uptime[strcspn(uptime, " ")] = '\0';
        say("ID boot=%s uptime=%s cpus=%ld", boot_id, uptime, sysconf(_SC_NPROCESSORS_ONLN));
}

static void *heartbeat(void *unused)
{
        struct sched_param param = { .sched_priority = 10 };
        int64_t now, last, next, gap, max = 0;
        uint64_t n = 0;

        (void) unused;
        pthread_setschedparam(pthread_self(), SCHED_FIFO, &param);
        last = next = clock_ns(CLOCK_MONOTONIC);
        for (;;) {
                next += period_ms * 1000000;
                sleep_until(next);
                now = clock_ns(CLOCK_MONOTONIC);
                gap = now - last;
                last = now;
                if (gap > max)
                        max = gap;
                /* What was missed is not made up for. */
                if (now > next + period_ms * 1000000)
                        next = now;
                n++;
                say("HB %llu %.3f %.3f %lld %lld", (unsigned long long) n, (double) now / 1e9,
                    (double) clock_ns(CLOCK_BOOTTIME) / 1e9, (long long) gap / 1000000,
                    (long long) max / 1000000);
                if (n % 50 == 0)
                        say_id();
        }
        return NULL;
}

/* ---- kernel messages
 * --------------------------------------------------------------------------------------- */

static void *kernel_messages(void *unused)
{
        char record[8192], *text;
        ssize_t n;
        int fd;

        (void) unused;
        fd = open("/dev/kmsg", O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return NULL;
        lseek(fd, 0, SEEK_END);
        for (;;) {
                n = read(fd, record, sizeof(record) - 1);
                if (n < 0) {
                        if (errno == EPIPE)
                                say("DMESG messages were lost");
                        continue;
                }
                record[n] = '\0';
                /* Warnings and worse of the kernel itself. */
                if (strtoul(record, NULL, 10) > 4)
                        continue;
                text = strchr(record, ';');
                if (!text)
                        continue;
                text[strcspn(text, "\n")] = '\0';
                say("DMESG %s", text + 1);
        }
}

/* ---- disks
 * ------------------------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t x)
{
        x ^= x >> 33;
        x *= 0xff51afd7ed558ccdULL;
        x ^= x >> 33;
        x *= 0xc4ceb9fe1a85ec53ULL;
        return x ^ x >> 33;
}

/* Writes one block after the other, reads it again, compares. */
static void *probe(void *argument)
{
        uint64_t *out = aligned_alloc(BLOCK, BLOCK), *in = aligned_alloc(BLOCK, BLOCK), n = 0;
        Disk *d = argument;
        int64_t took;
        off_t offset;
        ssize_t r;

        for (;; n++) {
                offset = (off_t) (d->size - (uint64_t) PROBE_BLOCKS * BLOCK + mix(n) % PROBE_BLOCKS * BLOCK);
                for (size_t i = 0; i < BLOCK / sizeof(*out); i++)
                        out[i] = mix(n * 1000003 + (uint64_t) offset + i);
                memset(in, 0, BLOCK);
                d->since = clock_ns(CLOCK_MONOTONIC);
                r = pwrite(d->fd, out, BLOCK, offset);
                if (r != BLOCK)
                        say("DISK-ERROR %s write: %s", d->name, r < 0 ? strerror(errno) : "short");
                r = pread(d->fd, in, BLOCK, offset);
                took = clock_ns(CLOCK_MONOTONIC) - d->since;
                d->since = 0;
                if (r != BLOCK)
                        say("DISK-ERROR %s read: %s", d->name, r < 0 ? strerror(errno) : "short");
                else if (memcmp(out, in, BLOCK) != 0)
                        say("DISK-ERROR %s miscompare at %lld", d->name, (long long) offset);
                if (took > d->max_late)
                        d->max_late = took;
                d->probes++;
                usleep((useconds_t) probe_ms * 1000);
        }
        return NULL;
}

__attribute__((format(printf, 1, 2))) static char *text(const char *format, ...)
{
        char *result = NULL;
        va_list ap;

        va_start(ap, format);
        if (vasprintf(&result, format, ap) < 0)
                abort();
        va_end(ap);
        return result;
}

/* fio's first thread looks at the others a hundred times a second, which on an emulated CPU is most of the
 * work: less often. */
static void let_sleep(pid_t fio)
{
        char path[64];
        FILE *f;

        snprintf(path, sizeof(path), "/proc/%d/timerslack_ns", (int) fio);
        f = fopen(path, "we");
        if (!f || fprintf(f, "%d", 500000000) < 0 || fclose(f) != 0)
                say("ERROR %s cannot be written: %s", path, strerror(errno));
}

/* fio, for ever; what it says is passed on. It says nothing while all is well. */
static void *fio(void *argument)
{
        static const char *const common[] = {
                "fio",
                "--thread",
                "--ioengine=io_uring",
                "--direct=1",
                "--rw=randrw",
                "--bs=4k",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--verify_backlog=64",
                "--verify_dump=0",
                "--time_based",
                "--runtime=100000000",
                "--randrepeat=0",
                "--exitall_on_error=1",
                "--eta=never",
        };
        const size_t n_common = sizeof(common) / sizeof(common[0]);
        char *arguments[n_common + 5 + 3 * JOBS_MAX + 1], **end = arguments, line[400];
        Disk *d = argument;
        uint64_t each;
        int pipefd[2], status = 0;
        bool bad;
        FILE *f;
        pid_t pid;

        for (size_t i = 0; i < n_common; i++)
                *end++ = strdup(common[i]);
        *end++ = text("--filename=/dev/%s", d->name);
        *end++ = text("--iodepth=%ld", fio_depth);
        /* fio's own rates are kept by a thread that does not sleep before its time is near. */
        if (fio_iops) {
                *end++ = text("--thinktime=%d", 1000000);
                *end++ = text("--thinktime_blocks=%ld", (fio_iops + fio_jobs - 1) / fio_jobs);
        }
        /* Each job has a part of the disk to itself. */
        each = (d->size - (uint64_t) PROBE_BLOCKS * BLOCK) / (uint64_t) fio_jobs / 65536 * 65536;
        *end++ = text("--size=%llu", (unsigned long long) each);
        for (long i = 0; i < fio_jobs; i++) {
                *end++ = text("--name=luv%ld", i);
                *end++ = text("--offset=%llu", (unsigned long long) each * (unsigned long long) i);
        }
        *end = NULL;

        if (pipe(pipefd) < 0)
                return NULL;
        pid = fork();
        if (pid == 0) {
                dup2(pipefd[1], STDOUT_FILENO);
                dup2(pipefd[1], STDERR_FILENO);
                close(pipefd[0]);
                close(pipefd[1]);
                execv("/bin/fio", arguments);
                _exit(127);
        }
        close(pipefd[1]);
        f = fdopen(pipefd[0], "r");
        while (f && fgets(line, sizeof(line), f)) {
                line[strcspn(line, "\n")] = '\0';
                bad = strcasestr(line, "verify") || strcasestr(line, "err") || strcasestr(line, "fail");
                if (line[0])
                        say("%s %s", bad ? "FIO-ERROR" : "FIO", line);
                /* Not before: when it starts, it measures how long it may sleep. */
                if (fio_iops && strncmp(line, "Starting", 8) == 0)
                        let_sleep(pid);
        }
        waitpid(pid, &status, 0);
        say("FIO-ERROR fio on %s ended (%s %d)", d->name, WIFSIGNALED(status) ? "signal" : "exit code",
            WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
        return NULL;
}

static bool disk_open(Disk *d)
{
        char path[64];
        off_t size;

        snprintf(path, sizeof(path), "/dev/%.31s", d->name);
        d->fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
        size = d->fd < 0 ? -1 : lseek(d->fd, 0, SEEK_END);
        if (size < 4 * PROBE_BLOCKS * BLOCK)
                return false;
        d->size = (uint64_t) size;
        return true;
}

static void disk_say(Disk *d)
{
        unsigned long long reads = 0, read_sectors = 0, writes = 0, write_sectors = 0, inflight = 0;
        char path[64], stat[256];
        int64_t since = d->since;

        snprintf(path, sizeof(path), "/sys/block/%.31s/stat", d->name);
        read_file(path, stat, sizeof(stat));
        sscanf(stat, "%llu %*u %llu %*u %llu %*u %llu %*u %llu", &reads, &read_sectors, &writes,
               &write_sectors, &inflight);
        say("DISK %s ios=%llu bytes=%llu inflight=%llu probes=%llu maxlat=%lld age=%lld", d->name,
            reads + writes, (read_sectors + write_sectors) * 512, inflight, (unsigned long long) d->probes,
            (long long) atomic_exchange(&d->max_late, 0) / 1000000,
            since ? (long long) (clock_ns(CLOCK_MONOTONIC) - since) / 1000000 : 0);
}

/* ---- network
 * ----------------------------------------------------------------------------------------------- */

/*
 * What is numbered starts with the number in decimal and a NUL; each byte that follows is the number plus
 * its own place, as if 14 bytes stood before.
 */
static void net_count(Net *n, const uint8_t *data, size_t size)
{
        uint64_t number = 0, index;
        size_t i;

        for (i = 0; i < size && i < 20 && data[i] >= '0' && data[i] <= '9'; i++)
                number = number * 10 + (data[i] - '0');
        n->received++;
        if (i == 0 || i >= size || data[i] != '\0') {
                n->corrupted++;
                return;
        }
        for (i++; i < size; i++)
                if (data[i] != (uint8_t) (number + i + ETH_HLEN)) {
                        n->corrupted++;
                        return;
                }
        if (!n->any) {
                n->any = true;
                n->base = n->highest = number;
        }
        index = number - n->base;
        if (number < n->base || index >= FRAMES_MAX) {
                n->old++;
                return;
        }
        if (n->seen[index / 8] & 1U << index % 8) {
                n->duplicate++;
                return;
        }
        n->seen[index / 8] |= (uint8_t) (1U << index % 8);
        n->distinct++;
        if (number > n->highest)
                n->highest = number;
        n->span = n->highest - n->base + 1;
}

/* Raw frames of the type for experiments, and UDP to port 9999. */
static void *receive(void *argument)
{
        uint8_t frame[2048];
        Net *n = argument;
        uint16_t type;
        ssize_t size;
        size_t head;

        for (;;) {
                size = recv(n->fd, frame, sizeof(frame), 0);
                if (size < ETH_HLEN)
                        continue;
                memcpy(&type, frame + 12, sizeof(type));
                if (ntohs(type) == 0x88b5) {
                        net_count(n, frame + ETH_HLEN, (size_t) size - ETH_HLEN);
                } else if (ntohs(type) == ETHERTYPE_IP && size >= ETH_HLEN + 28 &&
                           frame[ETH_HLEN + 9] == IPPROTO_UDP) {
                        head = ETH_HLEN + (size_t) (frame[ETH_HLEN] & 0xf) * 4;
                        if ((size_t) size >= head + 8 && frame[head + 2] == 9999 >> 8 &&
                            frame[head + 3] == (9999 & 0xff)) {
                                size_t length = (size_t) (frame[head + 4] << 8 | frame[head + 5]);

                                if (length < 8 || head + length > (size_t) size)
                                        n->corrupted++;
                                else
                                        net_count(n, frame + head + 8, length - 8);
                        }
                }
        }
        return NULL;
}

static bool net_open(Net *n)
{
        struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
        struct ifreq request = { 0 };
        int size = 8 << 20;

        n->fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
        if (n->fd < 0)
                return false;
        memcpy(request.ifr_name, n->name, sizeof(request.ifr_name));
        if (ioctl(n->fd, SIOCGIFINDEX, &request) < 0)
                return false;
        address.sll_ifindex = request.ifr_ifindex;
        if (ioctl(n->fd, SIOCGIFFLAGS, &request) < 0)
                return false;
        setsockopt(n->fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
        n->seen = calloc(1, FRAMES_MAX / 8);
        if (!n->seen || bind(n->fd, (struct sockaddr *) &address, sizeof(address)) < 0)
                return false;
        request.ifr_flags |= IFF_UP | IFF_PROMISC;
        return ioctl(n->fd, SIOCSIFFLAGS, &request) == 0;
}

static void net_say(Net *n)
{
        static const char *const counters[] = { "rx_missed_errors", "rx_errors", "rx_dropped" };
        struct tpacket_stats stats = { 0 };
        static unsigned long long drops;
        unsigned long long lost = 0;
        socklen_t length = sizeof(stats);
        char path[128], value[32];

        for (size_t i = 0; i < sizeof(counters) / sizeof(counters[0]); i++) {
                snprintf(path, sizeof(path), "/sys/class/net/%.15s/statistics/%s", n->name, counters[i]);
                read_file(path, value, sizeof(value));
                lost += strtoull(value, NULL, 10);
        }
        getsockopt(n->fd, SOL_PACKET, PACKET_STATISTICS, &stats, &length);
        drops += stats.tp_drops;
        say("NET %s received=%llu highest=%llu missing=%llu duplicate=%llu corrupted=%llu old=%llu nic=%llu "
            "socket=%llu",
            n->name, (unsigned long long) n->received, (unsigned long long) n->highest,
            (unsigned long long) (n->span - n->distinct), (unsigned long long) n->duplicate,
            (unsigned long long) n->corrupted, (unsigned long long) n->old, lost, drops);
}

/* ---- console
 * ----------------------------------------------------------------------------------------------- */

static void shell(const char *command)
{
        char line[400];
        FILE *f;
        int rc;

        f = popen(command, "r"); /* NOLINT(cert-env33-c): it is a shell that is wanted */
        if (!f)
                return;
        while (fgets(line, sizeof(line), f)) {
                line[strcspn(line, "\n")] = '\0';
                say("SH %s", line);
        }
        rc = pclose(f);
        say("SH-END %d", WIFEXITED(rc) ? WEXITSTATUS(rc) : -1);
}

static void *console(void *unused)
{
        char line[400];

        (void) unused;
        while (fgets(line, sizeof(line), stdin)) {
                line[strcspn(line, "\r\n")] = '\0';
                if (strcmp(line, "id") == 0)
                        say_id();
                else if (strcmp(line, "poweroff") == 0) {
                        say("END");
                        tcdrain(STDOUT_FILENO);
                        reboot(RB_POWER_OFF);
                } else if (line[0] == '!')
                        shell(line + 1);
                else if (line[0])
                        say("HELP id | poweroff | !COMMAND");
        }
        return NULL;
}

static void console_setup(void)
{
        struct termios t;

        if (tcgetattr(STDIN_FILENO, &t) == 0) {
                t.c_iflag |= ICRNL;
                t.c_oflag &= ~(tcflag_t) OPOST;
                t.c_lflag &= ~(tcflag_t) ECHO;
                tcsetattr(STDIN_FILENO, TCSANOW, &t);
        }
}

/* ---- start
 * ------------------------------------------------------------------------------------------------- */

static void parse_list(char *text, bool disk)
{
        char *word, *save = NULL;

        for (word = strtok_r(text, ",", &save); word; word = strtok_r(NULL, ",", &save))
                if (disk && n_disks < DEVICES_MAX)
                        snprintf(disks[n_disks++].name, sizeof(disks[0].name), "%s", word);
                else if (!disk && n_nets < DEVICES_MAX)
                        snprintf(nets[n_nets++].name, sizeof(nets[0].name), "%s", word);
}

static void parse_command_line(void)
{
        static const struct {
                const char *name;
                long *value;
        } numbers[] = {
                { "luv.hb=", &period_ms },    { "luv.iops=", &fio_iops },  { "luv.jobs=", &fio_jobs },
                { "luv.depth=", &fio_depth }, { "luv.probe=", &probe_ms },
        };
        char text[4096], *word, *save = NULL;

        read_file("/proc/cmdline", text, sizeof(text));
        for (word = strtok_r(text, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
                if (strncmp(word, "luv.disk=", 9) == 0)
                        parse_list(word + 9, true);
                else if (strncmp(word, "luv.net=", 8) == 0)
                        parse_list(word + 8, false);
                for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
                        if (strncmp(word, numbers[i].name, strlen(numbers[i].name)) == 0)
                                *numbers[i].value = strtol(word + strlen(numbers[i].name), NULL, 10);
        }
        if (period_ms < 1)
                period_ms = 100;
        if (probe_ms < 1)
                probe_ms = 20;
        if (fio_jobs < 1 || fio_jobs > JOBS_MAX)
                fio_jobs = 1;
}

/* Devices may come a moment later than PID 1. */
static bool wait_for_device(const char *name, bool disk)
{
        char path[64];

        snprintf(path, sizeof(path), disk ? "/dev/%s" : "/sys/class/net/%s", name);
        for (int i = 0; i < 1000; i++) {
                if (access(path, F_OK) == 0)
                        return true;
                usleep(10000);
        }
        say("ERROR there is no %s", name);
        return false;
}

int main(void)
{
        int64_t next, report_ns;

        console_setup();
        parse_command_line();
        read_file("/proc/sys/kernel/random/boot_id", boot_id, sizeof(boot_id));
        say("START luvguest");
        say_id();
        start(kernel_messages, NULL);
        start(heartbeat, NULL);
        start(console, NULL);
        for (size_t i = 0; i < n_disks; i++) {
                Disk *d = &disks[i];

                if (!wait_for_device(d->name, true))
                        continue;
                if (!disk_open(d)) {
                        say("ERROR %s cannot be opened, or is too small", d->name);
                        continue;
                }
                start(probe, d);
                start(fio, d);
        }
        for (size_t i = 0; i < n_nets; i++) {
                Net *n = &nets[i];

                if (!wait_for_device(n->name, false))
                        continue;
                if (!net_open(n))
                        say("ERROR %s cannot be opened: %s", n->name, strerror(errno));
                else
                        start(receive, n);
        }
        report_ns = (period_ms > 1000 ? period_ms : 1000) * INT64_C(1000000);
        next = clock_ns(CLOCK_MONOTONIC);
        for (;;) {
                next += report_ns;
                sleep_until(next);
                if (clock_ns(CLOCK_MONOTONIC) > next + report_ns)
                        next = clock_ns(CLOCK_MONOTONIC);
                for (size_t i = 0; i < n_disks; i++)
                        if (disks[i].size)
                                disk_say(&disks[i]);
                for (size_t i = 0; i < n_nets; i++)
                        if (nets[i].seen)
                                net_say(&nets[i]);
        }
}
