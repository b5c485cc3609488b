#!/usr/bin/env python3
"""What snapshots cost a writer that does not use all there is: fio at half
the rate that the first disk gives it, on each disk for a while; on one of
them a snapshot is taken every 5 seconds.

usage: steady.py BYTES SECONDS RESULTS FRESH SNAPSHOTS MANY

FRESH, SNAPSHOTS and MANY are directories of disks whose images have BYTES of
data; MANY has many snapshots, of SNAPSHOTS some are taken here. Appends to
RESULTS, one JSON object a line, see report.py.
"""

import glob
import json
import os
import subprocess
import sys
import tempfile
import threading
import time

sys.dont_write_bytecode = True  # nothing is left in the source tree
from fio import fio  # noqa: E402

EVERY = 5.0


def mix(image: str, size: int, seconds: float, rate: int, log: str) -> dict:
    options = [f"--size={size}", "--rw=randrw", "--bs=4k", "--direct=1", "--ioengine=psync", "--norandommap",
               "--time_based", f"--runtime={seconds}",
               f"--write_lat_log={log}", "--log_avg_msec=1000", "--log_max_value=1"]
    if rate:
        options.append(f"--rate_iops={rate // 2},{rate // 2}")
    return fio(image, options, True)


def worst_writes(log: str) -> dict[int, float]:
    """The longest write of each second, in ms."""
    worst: dict[int, float] = {}
    for name in glob.glob(f"{log}_clat*.log"):
        with open(name, encoding="ascii") as file:
            for line in file:
                ms, ns, direction = (int(part) for part in line.split(",")[:3])
                if direction == 1:
                    worst[ms // 1000] = max(worst.get(ms // 1000, 0), ns / 1e6)
    return worst


class Taker(threading.Thread):
    """Takes a snapshot of a disk every 5 seconds until told to end."""

    def __init__(self, disk: str, prefix: str) -> None:
        super().__init__()
        self.directory, self.prefix = f"{disk}/.snapshots", prefix
        self.ended, self.taken, self.start_time = threading.Event(), [], time.monotonic()

    def run(self) -> None:
        due = EVERY / 2
        while not self.ended.wait(max(0.0, due - (time.monotonic() - self.start_time))):
            begin = time.monotonic() - self.start_time
            os.mkdir(f"{self.directory}/{self.prefix}{len(self.taken):04}")
            self.taken.append((begin, time.monotonic() - self.start_time))
            due = max(due + EVERY, self.taken[-1][1])


def run(disk: str, size: int, seconds: float, rate: int, snapshots: bool) -> tuple[float, dict, list]:
    """IOPS, the longest write of each second, and when snapshots were taken."""
    subprocess.run(["sync", f"{disk}/disk.img"], check=True)
    taker = Taker(disk, f"steady-{time.time_ns()}-")
    if snapshots:
        taker.start()
    with tempfile.TemporaryDirectory() as logs:
        job = mix(f"{disk}/disk.img", size, seconds, rate, f"{logs}/log")
        worst = worst_writes(f"{logs}/log")
    taker.ended.set()
    if snapshots:
        taker.join()
    return job["read"]["iops"] + job["write"]["iops"], worst, taker.taken


def main() -> None:
    size, seconds, results, fresh, snapshots, many = int(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:]

    def figure(name: str, value: float, unit: str, **wanted: float) -> None:
        with open(results, "a", encoding="utf-8") as file:
            json.dump({"name": name, "value": round(value, 3), "unit": unit, **wanted}, file)
            file.write("\n")
        print(f"= {name}: {value:.3f} {unit}", flush=True)

    full, _, _ = run(fresh, size, seconds / 4, 0, False)
    rate = int(full / 2)
    alone, alone_worst, _ = run(fresh, size, seconds, rate, False)
    taking, worst, taken = run(snapshots, size, seconds, rate, True)
    with_many, many_worst, _ = run(many, size, seconds, rate, False)
    near = {second for begin, end in taken for second in range(int(begin), int(end) + 2)}
    # As many seconds in which nothing happens: those of the same run first.
    others = [ms for second, ms in worst.items() if second not in near] + list(alone_worst.values())
    quiet = max(others[:len(near)])
    close = max(worst.get(second, 0) for second in near)
    figure("half of what random 4 KiB reads and writes reach", rate, "IOPS")
    figure("that rate while snapshots are taken, against none", taking / alone, "x", least=0.97)
    figure("that rate with many snapshots, against none", with_many / alone, "x", least=0.97)
    figure("longest write without snapshots", max(alone_worst.values()), "ms")
    figure("longest write with many snapshots", max(many_worst.values()), "ms")
    figure("longest write within a second of a mkdir", close, "ms")
    figure("longest write in as many seconds without", quiet, "ms")
    figure("longest write near a mkdir, beyond that", close - quiet, "ms", most=5)
    durations = sorted(end - begin for begin, end in taken)
    figure("mkdir under that load, median", durations[len(durations) // 2] * 1000, "ms")
    figure("mkdir under that load, longest", durations[-1] * 1000, "ms")


main()
