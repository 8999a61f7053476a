"""How much memory is kept for the next step: what the C library had freed, and oneDNN's compiled kernels.

A training step frees and asks for the same hundreds of blocks each time, so the C library shall keep them.
By default glibc gives large blocks back to the kernel and gets them again, page by page: measured on one core, 400 page
faults and 12 % of the time of a step of 10,000 parameters, 9,000 faults and 3 % at a million.

oneDNN keeps a kernel with its buffers for each shape it has seen, 1,024 of them by default. Ragged batches hardly ever
have the shape of another: a small LSTM encoder-decoder grew from 240 to 590 MiB in 240 steps, and stays below 340 with
32 kernels, at the same speed.
"""

import ctypes
import os
import platform

KERNELS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names in malloc.h

# For processes that are still to be started, whose training may run in a thread: one arena for all of them.
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    KERNELS[0]: KERNELS[1],
}


def keep_freed_memory() -> None:
    """Of this process, from now on. Does nothing for blocks where the C library is not glibc."""
    os.environ.setdefault(*KERNELS)  # read when oneDNN first runs
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    # Older versions take at most 32 MiB here.
    if not mallopt(MMAP_THRESHOLD, 2**30):
        mallopt(MMAP_THRESHOLD, 2**25)
    mallopt(TRIM_THRESHOLD, 2**31 - 1)
