#!/usr/bin/env python3
"""Makes COUNT chunks that are all different, cheaply: one block of 4 KiB
with a number in it at the start of each chunk of CHUNK_BYTES.

usage: chunks.py write|check FILE COUNT CHUNK_BYTES

`check` reads a thousand of them back and compares.
"""

import os
import sys

BLOCK = 4096


def block(number: int) -> bytes:
    return (b"%016d" % number) * (BLOCK // 16)


def main() -> None:
    verb, path = sys.argv[1:3]
    count, chunk_bytes = map(int, sys.argv[3:5])
    if verb == "write":
        file = os.open(path, os.O_WRONLY)
        for number in range(count):
            os.pwrite(file, block(number), number * chunk_bytes)
        os.fsync(file)
    else:
        file = os.open(path, os.O_RDONLY)
        for number in range(0, count, max(1, count // 1000)):
            if os.pread(file, BLOCK, number * chunk_bytes) != block(number):
                sys.exit(f"chunk {number} of {path} is not what was written")
    os.close(file)


main()
