#!/usr/bin/env python3
"""Reads and writes the real chunks of a store that `scale` made.

usage: deep.py mkdir DIRECTORY
       deep.py read IMAGE CHUNKS LOOKS
       deep.py known|new IMAGE CHUNKS LOOKS SEED

`read` looks at LOOKS random ones of the first CHUNKS chunks of an image that
has chunk after chunk, checks them, and prints the median time of a read in
microseconds. `known` writes random ones of them to another image, which are
in the store, and `new` such as are not; both sync. `mkdir` prints how many
microseconds that takes.
"""

import os
import random
import sys
import time

CHUNK = 64 << 10

what, path = sys.argv[1:3]
if what == "mkdir":
    start = time.perf_counter()
    os.mkdir(path)
    sys.exit(print(f"{(time.perf_counter() - start) * 1e6:.0f}"))
chunks, looks = map(int, sys.argv[3:5])
if what == "read":
    random.seed(1)
    image = os.open(path, os.O_RDONLY)
    times = []
    for _ in range(looks):
        number = random.randrange(chunks)
        start = time.perf_counter()
        found = os.pread(image, 4096, number * CHUNK)
        times.append(time.perf_counter() - start)
        if found != (number + 1).to_bytes(8, "little") + bytes(4088):
            sys.exit(f"chunk {number} of {path} is wrong")
    print(f"{sorted(times)[looks // 2] * 1e6:.0f}")
else:
    random.seed(int(sys.argv[5]))
    image = os.open(path, os.O_RDWR)
    for at in range(looks):
        number = random.randrange(chunks) + 1 if what == "known" else random.getrandbits(62)
        os.pwrite(image, number.to_bytes(8, "little") + bytes(CHUNK - 8), at * CHUNK)
    os.fsync(image)
