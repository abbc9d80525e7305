/* The least that a durable folder queue can cost here: its system calls, in C, and nothing else.
 *
 *     floor latency DIR [--tasks N] [--payload-bytes B] [--sync none|full] [--interval-us U]
 *         One producer, one idle consumer, one task at a time. The producer writes pending/.N.tmp, [fsync], renames it,
 *         [fsync pending/]; the consumer wakes by inotify, renames the file to claimed/, opens, reads and closes it,
 *         writes done/.N.tmp, [fsync], renames it; the producer wakes by inotify on done/. Prints CSV, a row for each
 *         task: ns from before the producer's first system call to each point.
 *     floor drain DIR [--tasks N] [--payload-bytes B] [--sync none|each|group] [--results none|files|log] [--workers W]
 *         A backlog is listed, sorted, and worked off by W processes. Prints {"tasks": N, "seconds": S}.
 *     floor put DIR [--tasks N] [--payload-bytes B] [--sync none|each|group]
 *         N tasks written and renamed by one producer. Prints the same.
 *     The first two also take --steps protocol: the worker's steps are then all that this project's protocol asks for (fstat
 *         before the read; a look whether the id is done or failed already; the record in results/, the commit, the
 *         publication, and the commit's name removed; with full, the folders synced), so what C cannot avoid either is told
 *         apart from what Python adds.
 *     floor stamp FILE
 *         Appends CLOCK_MONOTONIC in ns to FILE: a task for rivals that run programs.
 *
 * --sync group: 256 tasks share their syncs: all written, all synced, all renamed, one fsync of the folder.
 */
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

enum { NAME_BYTES = 32, GROUP = 256, READ_BYTES = 1 << 20 };
enum point { PUT, WOKEN, CLAIMED, READ, DONE, SEEN, POINTS };

struct times {
    int64_t begun, at[POINTS];
};

static struct {
    const char *dir, *sync, *results, *steps;
    long tasks, payload_bytes, interval_us, workers;
} options = {.sync = "none", .results = "files", .steps = "least", .tasks = 1000, .payload_bytes = 200, .interval_us = 2000, .workers = 1};

static int pending, claimed, results, done, failed, all_steps;
static char *envelope;
static size_t envelope_bytes;

static int64_t now_ns(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * INT64_C(1000000000) + at.tv_nsec;
}

static int folder(const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", options.dir, name);
    if (mkdir(path, 0750) && errno != EEXIST)
        err(1, "%s", path);
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        err(1, "%s", path);
    return fd;
}

static void write_temporary(int dir, const char *temporary, const char *bytes, size_t size, int sync)
{
    int fd = openat(dir, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0640);
    if (fd < 0 || write(fd, bytes, size) != (ssize_t)size || (sync && fsync(fd)) || close(fd))
        err(1, "%s", temporary);
}

static void rename_in(int dir, const char *temporary, const char *name)
{
    if (renameat(dir, temporary, dir, name))
        err(1, "%s", name);
}

static void sync_only(int dir, const char *name)
{
    int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) || close(fd))
        err(1, "%s", name);
}

static void sync_folder(int dir)
{
    if (fsync(dir))
        err(1, "fsync of a folder");
}

static void name_task(long task, char *temporary, char *name)
{
    snprintf(temporary, NAME_BYTES, ".t%08ld.tmp", task);
    snprintf(name, NAME_BYTES, "t%08ld.json", task);
}

static void make_envelope(void)
{
    const char *head = "{\"id\":\"t00000000\",\"class\":\"cpu_short\",\"payload\":\"", *tail = "\"}";
    envelope = malloc(strlen(head) + options.payload_bytes + strlen(tail) + 1);
    char *end = stpcpy(envelope, head);
    memset(end, 'x', options.payload_bytes);
    strcpy(end + options.payload_bytes, tail);
    envelope_bytes = strlen(envelope);
}

/* Read one task as a worker does. */
static void take(const char *name, char *bytes, int64_t *claimed_at)
{
    if (renameat(pending, name, claimed, name))
        err(1, "%s", name);
    if (claimed_at)
        *claimed_at = now_ns();
    struct stat status;
    int fd = openat(claimed, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || (all_steps && fstat(fd, &status)) || read(fd, bytes, READ_BYTES) < 0 || close(fd))
        err(1, "%s", name);
    if (all_steps && (!faccessat(done, name, F_OK, AT_SYMLINK_NOFOLLOW) || !faccessat(failed, name, F_OK, AT_SYMLINK_NOFOLLOW)))
        errx(1, "%s is done already", name);
}

/* Keep the result of one task, with the least that does it or with all that the protocol asks for. */
static void finish(const char *temporary, const char *name, int sync)
{
    if (!all_steps) {
        write_temporary(done, temporary, envelope, envelope_bytes, sync);
        rename_in(done, temporary, name);
        return;
    }
    char won[NAME_BYTES + 8];
    snprintf(won, sizeof won, ".%s.won", name);
    write_temporary(results, name, envelope, envelope_bytes, sync);
    if (sync)
        sync_folder(results);
    if (renameat(claimed, name, done, won) || renameat2(results, name, done, name, RENAME_NOREPLACE))
        err(1, "%s", name);
    if (sync) {
        sync_folder(done);
        sync_folder(claimed);
    }
    if (unlinkat(done, won, 0))
        err(1, "%s", won);
}

/* ------------------------------------------------------------------------------------------------ latency */

static int watch(const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", options.dir, name);
    int fd = inotify_init1(IN_CLOEXEC);
    if (fd < 0 || inotify_add_watch(fd, path, IN_MOVED_TO) < 0)
        err(1, "%s", path);
    return fd;
}

/* Sleep until one visible name was moved into the watched folder: only one task is under way at a time. */
static void wake(int fd)
{
    char events[4096] __attribute__((aligned(8)));
    for (;;) {
        ssize_t size = read(fd, events, sizeof events);
        if (size <= 0)
            err(1, "inotify");
        const struct inotify_event *event;
        for (char *at = events; at < events + size; at += sizeof *event + event->len) {
            event = (const struct inotify_event *)at;
            if (event->name[0] != '.')
                return;
        }
    }
}

static void consume(int watching, volatile struct times *times, int sync)
{
    char temporary[NAME_BYTES], name[NAME_BYTES], *bytes = malloc(READ_BYTES);
    for (long task = 0; task < options.tasks; task++) {
        name_task(task, temporary, name);
        wake(watching);
        times[task].at[WOKEN] = now_ns();
        int64_t at;
        take(name, bytes, &at);
        times[task].at[READ] = now_ns();
        times[task].at[CLAIMED] = at;
        finish(temporary, name, sync);
        times[task].at[DONE] = now_ns();
    }
}

static void measure_latency(void)
{
    int sync = !strcmp(options.sync, "full"), tasks_watched = watch("pending"), results_watched = watch("done");
    volatile struct times *times =
        mmap(NULL, options.tasks * sizeof *times, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t consumer = fork();
    if (consumer == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        consume(tasks_watched, times, sync);
        _exit(0);
    }
    struct timespec interval = {options.interval_us / 1000000, options.interval_us % 1000000 * 1000};
    char temporary[NAME_BYTES], name[NAME_BYTES];
    for (long task = 0; task < options.tasks; task++) {
        nanosleep(&interval, NULL);
        name_task(task, temporary, name);
        times[task].begun = now_ns();
        write_temporary(pending, temporary, envelope, envelope_bytes, sync);
        rename_in(pending, temporary, name);
        if (sync)
            sync_folder(pending);
        times[task].at[PUT] = now_ns();
        wake(results_watched);
        times[task].at[SEEN] = now_ns();
    }
    int status;
    if (waitpid(consumer, &status, 0) < 0 || status)
        errx(1, "the consumer ended with status %d", status);
    puts("put,woken,claimed,start,done,seen");
    for (long task = 0; task < options.tasks; task++)
        for (int point = 0; point < POINTS; point++)
            printf("%lld%c", (long long)(times[task].at[point] - times[task].begun), point == SEEN ? '\n' : ',');
}

/* ------------------------------------------------------------------------------------------- put and drain */

static void put_all(const char *sync)
{
    char temporary[NAME_BYTES], name[NAME_BYTES];
    int each = !strcmp(sync, "each"), group = !strcmp(sync, "group");
    for (long first = 0; first < options.tasks; first += GROUP) {
        long end = first + GROUP < options.tasks ? first + GROUP : options.tasks;
        for (long task = first; task < end; task++) {
            name_task(task, temporary, name);
            write_temporary(pending, temporary, envelope, envelope_bytes, each);
            if (!group)
                rename_in(pending, temporary, name);
            if (each)
                sync_folder(pending);
        }
        if (!group)
            continue;
        for (long task = first; task < end; task++) {
            name_task(task, temporary, name);
            sync_only(pending, temporary);
        }
        for (long task = first; task < end; task++) {
            name_task(task, temporary, name);
            rename_in(pending, temporary, name);
        }
        sync_folder(pending);
    }
}

static int by_name(const void *one, const void *other)
{
    return strcmp(one, other);
}

static long list_pending(char (**names)[NAME_BYTES])
{
    long count = 0, room = 1024;
    *names = malloc(room * NAME_BYTES);
    DIR *listing = fdopendir(dup(pending));
    for (struct dirent *entry; (entry = readdir(listing));) {
        if (entry->d_name[0] == '.')
            continue;
        if (count == room)
            *names = realloc(*names, (room *= 2) * NAME_BYTES);
        snprintf((*names)[count++], NAME_BYTES, "%.31s", entry->d_name);
    }
    closedir(listing);
    qsort(*names, count, NAME_BYTES, by_name);
    return count;
}

static void finish_group(char temporaries[GROUP][NAME_BYTES], char names[GROUP][NAME_BYTES], int count)
{
    for (int i = 0; i < count; i++)
        sync_only(done, temporaries[i]);
    for (int i = 0; i < count; i++)
        rename_in(done, temporaries[i], names[i]);
    sync_folder(done);
}

/* Work off every W-th name. */
static void work(char (*names)[NAME_BYTES], long count, long worker)
{
    int files = !strcmp(options.results, "files"), log = !strcmp(options.results, "log"), log_fd = -1;
    int each = !strcmp(options.sync, "each"), group = !strcmp(options.sync, "group"), held = 0;
    char *bytes = malloc(READ_BYTES), temporaries[GROUP][NAME_BYTES], finished[GROUP][NAME_BYTES];
    if (log) {
        char log_name[NAME_BYTES];
        snprintf(log_name, sizeof log_name, "%ld.log", worker);
        log_fd = openat(done, log_name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
    }
    for (long i = worker; i < count; i += options.workers) {
        take(names[i], bytes, NULL);
        if (log && write(log_fd, envelope, envelope_bytes) != (ssize_t)envelope_bytes)
            err(1, "log");
        if (files) {
            snprintf(temporaries[held], NAME_BYTES, ".%.26s.tmp", names[i]);
            memcpy(finished[held], names[i], NAME_BYTES);
            if (group)
                write_temporary(done, temporaries[held], envelope, envelope_bytes, 0);
            else
                finish(temporaries[held], names[i], each);
        }
        held += group;
        if ((log && each) || (log && held == GROUP))
            if (fdatasync(log_fd))
                err(1, "log");
        if (files && held == GROUP)
            finish_group(temporaries, finished, held);
        held %= GROUP;
    }
    if (held && log && fdatasync(log_fd))
        err(1, "log");
    if (held && files)
        finish_group(temporaries, finished, held);
}

static void print_rate(int64_t begun)
{
    printf("{\"tasks\": %ld, \"seconds\": %.6f}\n", options.tasks, (now_ns() - begun) / 1e9);
}

static void measure_drain(void)
{
    put_all("none");
    int64_t begun = now_ns();
    char (*names)[NAME_BYTES];
    long count = list_pending(&names);
    for (long worker = 1; worker < options.workers; worker++)
        if (fork() == 0) {
            work(names, count, worker);
            _exit(0);
        }
    work(names, count, 0);
    int status;
    while (wait(&status) > 0)
        if (status)
            errx(1, "a worker ended with status %d", status);
    print_rate(begun);
}

static void stamp(const char *path)
{
    char line[32];
    int length = snprintf(line, sizeof line, "%lld\n", (long long)now_ns());
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
    if (fd < 0 || write(fd, line, length) != length)
        err(1, "%s", path);
}

static void read_options(int count, char **words)
{
    options.dir = words[2];
    for (int i = 3; i + 1 < count; i += 2) {
        const char *name = words[i], *value = words[i + 1];
        if (!strcmp(name, "--sync"))
            options.sync = value;
        else if (!strcmp(name, "--results"))
            options.results = value;
        else if (!strcmp(name, "--steps"))
            options.steps = value;
        else if (!strcmp(name, "--tasks"))
            options.tasks = atol(value);
        else if (!strcmp(name, "--payload-bytes"))
            options.payload_bytes = atol(value);
        else if (!strcmp(name, "--interval-us"))
            options.interval_us = atol(value);
        else if (!strcmp(name, "--workers"))
            options.workers = atol(value);
        else
            errx(2, "%s: no such option", name);
    }
}

int main(int count, char **words)
{
    if (count < 3)
        errx(2, "use: floor latency|drain|put DIR [options], or floor stamp FILE");
    if (!strcmp(words[1], "stamp")) {
        stamp(words[2]);
        return 0;
    }
    read_options(count, words);
    pending = folder("pending");
    claimed = folder("claimed");
    results = folder("results");
    done = folder("done");
    failed = folder("failed");
    all_steps = !strcmp(options.steps, "protocol");
    make_envelope();
    if (!strcmp(words[1], "latency"))
        measure_latency();
    else if (!strcmp(words[1], "drain"))
        measure_drain();
    else if (!strcmp(words[1], "put")) {
        int64_t begun = now_ns();
        put_all(options.sync);
        print_rate(begun);
    } else
        errx(2, "%s: not one of latency, drain, put, stamp", words[1]);
    return 0;
}
