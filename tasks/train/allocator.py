"""How much memory is kept for the next step: blocks that the C library has freed, and oneDNN's compiled kernels.

Every training step frees and allocates the same hundreds of blocks, so the C library should keep them. By default glibc
returns large blocks to the kernel and gets them again page by page. Measured on one core, that is 400 page faults and
12 % of the time of a step with 10,000 parameters, and 9,000 faults and 3 % with a million.

oneDNN keeps a kernel with its buffers for each shape it has seen, by default 1,024 of them. Two ragged batches rarely
have the same shape: a small LSTM encoder-decoder grew from 240 to 590 MiB in 240 steps. With 32 kernels it stays below
340 at the same speed.
"""

import ctypes
import os
import platform

KERNELS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names in malloc.h

# For processes that are started later and may train in a thread: one arena for all threads.
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    KERNELS[0]: KERNELS[1],
}


def keep_freed_memory() -> None:
    """Keeps the freed memory of this process from now on. Does nothing for blocks if the C library is not glibc."""
    os.environ.setdefault(*KERNELS)  # read when oneDNN first runs
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    # Older versions take at most 32 MiB here.
    if not mallopt(MMAP_THRESHOLD, 2**30):
        mallopt(MMAP_THRESHOLD, 2**25)
    mallopt(TRIM_THRESHOLD, 2**31 - 1)
