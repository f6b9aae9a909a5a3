"""A library that makes reads of one byte of a file fail, for `LD_PRELOAD`."""

import shutil
import subprocess
from pathlib import Path

import pytest

# The environment decides at each read, so that a test may change it with `os.environ`:
# `FAULT` is the kind, `FAULT_AT` the byte offset, and `FAULT_FILE` the end of the file's name.
_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int interrupted;

/* Return the bytes to read instead of `count`, or -1 with errno. */
static ssize_t meet(int file, size_t count, off_t offset) {
    const char *kind = getenv("FAULT"), *at = getenv("FAULT_AT"), *name = getenv("FAULT_FILE");
    char link[64], path[4096];
    if (!kind || !at || !name || atol(at) < offset || atol(at) >= offset + (off_t)count)
        return count;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < (ssize_t)strlen(name)) return count;
    path[length] = 0;
    if (strcmp(path + length - strlen(name), name)) return count;
    if (!strcmp(kind, "stall")) { sleep(1000); return count; }
    if (!strcmp(kind, "EIO")) { errno = EIO; return -1; }
    if (!strcmp(kind, "EINTR") && interrupted++ % 5 < 4) { errno = EINTR; return -1; }
    if (!strcmp(kind, "short")) return count > 1 ? count / 2 : count;
    if (!strcmp(kind, "end")) return 0;
    return count;
}

#define READ(NAME)                                                                     \
    ssize_t NAME(int file, void *buffer, size_t count, off_t offset) {                 \
        ssize_t (*real)(int, void *, size_t, off_t) = dlsym(RTLD_NEXT, #NAME);         \
        ssize_t wanted = meet(file, count, offset);                                    \
        return wanted < 0 ? -1 : real(file, buffer, wanted, offset);                   \
    }
/* Python calls the last two. */
#define READV(NAME, PARAMETERS, ...)                                                   \
    ssize_t NAME PARAMETERS {                                                          \
        ssize_t (*real) PARAMETERS = dlsym(RTLD_NEXT, #NAME);                          \
        struct iovec first = parts[0], *one = &first;                                  \
        ssize_t wanted = meet(file, first.iov_len, offset);                            \
        if (wanted < 0) return -1;                                                     \
        if (wanted < (ssize_t)first.iov_len) parts = one, number = 1;                  \
        first.iov_len = wanted;                                                        \
        return real(__VA_ARGS__);                                                      \
    }
#define FOUR (int file, const struct iovec *parts, int number, off_t offset)
#define FIVE (int file, const struct iovec *parts, int number, off_t offset, int flags)
READ(pread) READ(pread64)
READV(preadv, FOUR, file, parts, number, offset) READV(preadv64, FOUR, file, parts, number, offset)
READV(preadv2, FIVE, file, parts, number, offset, flags)
READV(preadv64v2, FIVE, file, parts, number, offset, flags)
"""


@pytest.fixture(scope="session")
def faulty_reads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library. Tests that use it are skipped without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(_SOURCE)
    library = folder / "shim.so"
    command = [compiler, "-shared", "-fPIC", "-o", str(library), str(folder / "shim.c"), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library
