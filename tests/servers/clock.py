"""A wrong clock for one process, by ``LD_PRELOAD``."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import gettempdir

from tests.servers.engines import needs

# It calls the kernel, not the C library, which is not ready when the allocator of a program calls it first.
SOURCE = r"""
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long skew;

__attribute__((constructor)) static void begin(void) { skew = atol(getenv("CLOCK_SKEW")); }

int clock_gettime(clockid_t clock, struct timespec *at) {
    int failed = syscall(SYS_clock_gettime, clock, at);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) at->tv_sec += skew;
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


@cache
def library() -> str:
    """Compile the library, for programs that are linked dynamically. Skip the test without a C compiler."""
    compiler = needs("a C compiler", shutil.which("cc") or shutil.which("gcc"))
    built = Path(gettempdir()) / f"wrong-clock-{os.getpid()}.so"
    subprocess.run(
        [compiler, "-x", "c", "-", "-shared", "-fPIC", "-O2", "-o", str(built)], input=SOURCE.encode(), check=True
    )
    return str(built)


def environment(skew: int) -> dict[str, str]:
    """Return the environment for a program whose clock is ``skew`` seconds ahead."""
    return {**os.environ, "LD_PRELOAD": library(), "CLOCK_SKEW": str(skew)}
