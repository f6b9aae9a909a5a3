/* Faults in the reads and writes of a process, injected by LD_PRELOAD.
 *
 * The file that the environment variable CHAOS_CONTROL names is mapped, and holds one `struct plan`.
 * A call is hit if its operation is in `ops`, its file is meant by `path`, its byte range meets
 * [start, end), and `after` such calls came before. `hits` counts the calls that were changed.
 * A process that dies in a write leaves half of it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

enum { READ = 1, WRITE = 2, SYNC = 4, RENAME = 8 };
enum { NONE, FAIL, SHORT, EMPTY, STALL, DIE, COUNT };

struct plan {
    int kind, ops, error, after, most, bytes, seconds, seen, hits, group;
    long long start, end;
    char path[512];
};

static struct plan *plan;

__attribute__((constructor)) static void start(void) {
    const char *name = getenv("CHAOS_CONTROL");
    int file = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *map = mmap(NULL, sizeof *plan, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (map != MAP_FAILED) plan = map;
    close(file);
}

static __thread int dying;

static void die(void) { kill(plan->group ? 0 : getpid(), SIGKILL); }

/* A plan's path that ends in a slash is a folder; else it is the end of a path. */
static int is_meant(const char *path) {
    size_t length = strlen(path), end = strlen(plan->path);
    if (end && plan->path[end - 1] == '/') return strstr(path, plan->path) != NULL;
    return length >= end && !strcmp(path + length - end, plan->path);
}

/* Return whether the plan changes this call, and count it. */
static int counted(int op) {
    return (plan->ops & op) && __sync_fetch_and_add(&plan->seen, 1) >= plan->after && plan->kind != COUNT &&
           __sync_fetch_and_add(&plan->hits, 1) < plan->most;
}

/* Return whether to make the call itself; else `*result` is its result. May reduce `*size`. */
static int passes(int op, int file, size_t *size, long long offset, ssize_t *result) {
    if (!plan || plan->kind == NONE || !(plan->ops & op)) return 1;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 1;
    path[length] = 0;
    if (!is_meant(path)) return 1;
    if (offset < 0 && (offset = lseek(file, 0, SEEK_CUR)) < 0) offset = 0;
    if (offset >= plan->end || offset + (long long)*size <= plan->start) return 1;
    if (plan->kind == SHORT && *size <= (size_t)plan->bytes) return 1;
    if (offset < plan->start && (plan->kind == FAIL || plan->kind == EMPTY)) {
        *size = plan->start - offset; /* as a disk with a bad sector does */
        return 1;
    }
    if (!counted(op)) return 1;
    switch (plan->kind) {
    case FAIL: errno = plan->error; *result = -1; return 0;
    case EMPTY: *result = 0; return 0;
    case SHORT: *size = plan->bytes; return 1;
    case STALL: sleep(plan->seconds); return 1;
    case DIE:
        if (op != WRITE) die();
        *size /= 2;
        dying = 1;
    }
    return 1;
}

#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name); real; })
#define BYTES(name, op, buffer_type, offset_type)                                                  \
    ssize_t name(int file, buffer_type buffer, size_t size, offset_type offset) {                  \
        ssize_t result;                                                                            \
        if (!passes(op, file, &size, offset, &result)) return result;                              \
        result = REAL(name)(file, buffer, size, offset);                                           \
        if (dying) die();                                                                          \
        return result;                                                                             \
    }
/* A vector is cut to its first part, so that a short call is short. Python calls the last two forms. */
#define VECTOR(name, op, call, ...)                                                                \
    ssize_t name(int file, const struct iovec *parts, int count, off_t offset __VA_ARGS__) {       \
        ssize_t result;                                                                            \
        size_t size = 0;                                                                           \
        for (int at = 0; at < count; at++) size += parts[at].iov_len;                              \
        size_t wanted = size;                                                                      \
        if (!passes(op, file, &size, offset, &result)) return result;                              \
        struct iovec first = parts[0];                                                             \
        if (size < first.iov_len) first.iov_len = size;                                            \
        if (size < wanted) parts = &first, count = 1;                                              \
        result = call;                                                                             \
        if (dying) die();                                                                          \
        return result;                                                                             \
    }
#define FOUR(name, op) VECTOR(name, op, REAL(name)(file, parts, count, offset))
#define FIVE(name, op) VECTOR(name, op, REAL(name)(file, parts, count, offset, flags), , int flags)

BYTES(pread, READ, void *, off_t)
BYTES(pread64, READ, void *, off64_t)
BYTES(pwrite, WRITE, const void *, off_t)
BYTES(pwrite64, WRITE, const void *, off64_t)
FOUR(preadv, READ)
FOUR(preadv64, READ)
FIVE(preadv2, READ)
FIVE(preadv64v2, READ)
FOUR(pwritev, WRITE)
FOUR(pwritev64, WRITE)
FIVE(pwritev2, WRITE)
FIVE(pwritev64v2, WRITE)

ssize_t read(int file, void *buffer, size_t size) {
    ssize_t result;
    return passes(READ, file, &size, -1, &result) ? REAL(read)(file, buffer, size) : result;
}

ssize_t write(int file, const void *buffer, size_t size) {
    ssize_t result;
    if (!passes(WRITE, file, &size, -1, &result)) return result;
    result = REAL(write)(file, buffer, size);
    if (dying) die();
    return result;
}

int fsync(int file) {
    ssize_t result;
    size_t size = 1;
    return passes(SYNC, file, &size, 0, &result) ? REAL(fsync)(file) : (int)result;
}

int fdatasync(int file) {
    ssize_t result;
    size_t size = 1;
    return passes(SYNC, file, &size, 0, &result) ? REAL(fdatasync)(file) : (int)result;
}

int rename(const char *from, const char *to) {
    if (plan && plan->kind != NONE && is_meant(to) && counted(RENAME)) {
        if (plan->kind == DIE) die();
        if (plan->kind == FAIL) {
            errno = plan->error;
            return -1;
        }
    }
    return REAL(rename)(from, to);
}
