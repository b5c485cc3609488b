#!/usr/bin/env python3
"""Writes 4 KiB at random places of a file, one after the other, and tells
how long the longest call took: the pause that a writer sees.

usage: writer.py FILE SECONDS

Prints "writes LONGEST_MS P99.9_MS". Its own process, single-threaded, the
collector off: nothing of Python can stand between two readings of the clock.
"""

import gc
import os
import random
import sys
import time
from array import array

BLOCK = 4096


def main() -> None:
    path, seconds = sys.argv[1], float(sys.argv[2])
    file = os.open(path, os.O_WRONLY)
    blocks = os.fstat(file).st_size // BLOCK
    places = random.Random(1)
    data = places.randbytes(BLOCK)
    took = array("Q")
    gc.disable()
    end = time.perf_counter_ns() + int(seconds * 1e9)
    while True:
        offset = places.randrange(blocks) * BLOCK
        start = time.perf_counter_ns()
        if start >= end:
            break
        os.pwrite(file, data, offset)
        took.append(time.perf_counter_ns() - start)
    os.close(file)
    ordered = sorted(took)
    print(len(ordered), ordered[-1] / 1e6, ordered[len(ordered) * 999 // 1000] / 1e6)


main()
