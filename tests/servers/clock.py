"""A clock that is wrong, for a program of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import gettempdir

from tests.servers.engines import needs

# It asks the kernel and not the C library, which a program's own allocator may call before that is ready.
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
    """Build what is loaded before a program that is linked dynamically; skip the test where nothing compiles C."""
    compiler = needs("a C compiler", shutil.which("cc") or shutil.which("gcc"))
    built = Path(gettempdir()) / f"wrong-clock-{os.getpid()}.so"
    subprocess.run(
        [compiler, "-x", "c", "-", "-shared", "-fPIC", "-O2", "-o", str(built)], input=SOURCE.encode(), check=True
    )
    return str(built)


def environment(skew: int) -> dict[str, str]:
    """Return the environment of a program whose clock is so many seconds off."""
    return {**os.environ, "LD_PRELOAD": library(), "CLOCK_SKEW": str(skew)}
