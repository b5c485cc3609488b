#!/usr/bin/env python3
"""Runs the same fio jobs on two files in turn (A B B A A B …) and prints one
line a job: the medians and their ratio.

usage: fio.py BARE_FILE SNAPDISK_FILE BYTES SECONDS ROUNDS RESULTS

Appends to RESULTS, one JSON object a line, see report.py.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile

# name, fio options, figure (direction, key, divisor, unit), smallest wanted ratio
IOPS, MIBS = ("iops", 1, "IOPS"), ("bw_bytes", 1 << 20, "MiB/s")
SMALL, LARGE = ["--bs=4k", "--direct=1"], ["--bs=1m"]
JOBS = [
    ("random 4 KiB read, depth 1", ["--rw=randread", "--iodepth=1", *SMALL], IOPS, 0.7),
    ("random 4 KiB read, depth 16", ["--rw=randread", "--iodepth=16", *SMALL], IOPS, 0.7),
    ("random 4 KiB write, depth 1", ["--rw=randwrite", "--iodepth=1", *SMALL], IOPS, 0.7),
    ("random 4 KiB write, depth 16", ["--rw=randwrite", "--iodepth=16", *SMALL], IOPS, 0.7),
    ("sequential 1 MiB read, direct", ["--rw=read", "--iodepth=4", "--direct=1", *LARGE], MIBS, 0.7),
    ("sequential 1 MiB read, buffered", ["--rw=read", "--ioengine=psync", *LARGE], MIBS, 0.7),
    ("sequential 1 MiB write, direct", ["--rw=write", "--iodepth=4", "--direct=1", *LARGE], MIBS, 0.7),
    ("sequential 1 MiB write, buffered", ["--rw=write", "--ioengine=psync", *LARGE], MIBS, 0.7),
    ("random 4 KiB write + fsync each", ["--rw=randwrite", "--ioengine=psync", "--bs=4k", "--fsync=1"], IOPS, None),
]


def fio(path: str, options: list[str], show: bool) -> dict:
    # A later option of the same name wins: the job's come last.
    command = ["fio", "--name=job", f"--filename={path}", "--output-format=json",
               "--fallocate=none", "--randrepeat=0", "--norandommap", *options]
    if show:
        print("+", " ".join(command), flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"fio.py: {' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    # fio may print a note before the report.
    return json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]


def engine() -> str:
    """The first asynchronous engine that works here."""
    for name in ("libaio", "io_uring"):
        with tempfile.NamedTemporaryFile() as probe:
            tried = subprocess.run(["fio", "--name=probe", f"--filename={probe.name}", "--size=4k",
                                    f"--ioengine={name}"], capture_output=True)
        if tried.returncode == 0:
            return name
    sys.exit("fio.py: neither libaio nor io_uring works here")


def main() -> None:
    bare, snapdisk, size, seconds, rounds, results = sys.argv[1:]
    common = [f"--size={size}", f"--ioengine={engine()}"]
    for path in (bare, snapdisk):
        fio(path, [*common, "--rw=write", "--bs=1m", "--ioengine=psync", "--end_fsync=1"], True)
    print(f"\n{'job':34}{'bare':>12}{'snapdisk':>12}  {'unit':6}{'ratio':>6}", flush=True)
    for name, options, (key, divisor, unit), wanted in JOBS:
        direction = "write" if "write" in options[0] else "read"
        figures: dict[str, list[float]] = {bare: [], snapdisk: []}
        for turn in range(int(rounds)):
            for path in (bare, snapdisk) if turn % 2 == 0 else (snapdisk, bare):
                os.sync()  # what the last job left dirty is not this one's
                job = fio(path, [*common, "--time_based", f"--runtime={seconds}", *options], False)
                figures[path].append(job[direction][key] / divisor)
        a, b = (statistics.median(figures[path]) for path in (bare, snapdisk))
        print(f"{name:34}{a:12.0f}{b:12.0f}  {unit:6}{b / a:6.2f}   fio {' '.join(options)}", flush=True)
        with open(results, "a", encoding="utf-8") as file:
            json.dump({"name": name, "value": round(b / a, 3), "unit": "x bare", "least": wanted,
                       "bare": figures[bare], "snapdisk": figures[snapdisk], "of": unit}, file)
            file.write("\n")


main()
