#!/usr/bin/env python3
"""Runs the same fio jobs on several files, in turns (A B C, C B A, …), and
prints one line a job: every target's median with its smallest and largest.

usage: fio.py [--quick] BYTES TIME ROUNDS RESULTS TARGET=FILE…

TIME is how long a job runs, as fio takes it: 2 (seconds) or 500ms.

Each FILE has BYTES of data, half of which compresses away, and as many bytes
behind them to which nothing was ever written. A TARGET that is called
"snapshots" has a snapshot taken at the start of each of its jobs and then
every 5 seconds. --quick leaves out jobs that others resemble. Appends to
RESULTS, one JSON object a line, see report.py.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field

MIB = 1 << 20
ENGINE_DEPTH = {1: ["--iodepth=1"], 16: ["--iodepth=16"]}


@dataclass(frozen=True)
class Job:
    """What fio is to do. `all` jobs run on every target, others are left
    out where a snapshot is being taken or many are there."""

    name: str
    rw: str
    block: str
    options: list[str] = field(default_factory=list)
    cold: bool = False    # the system's caches are dropped before it
    first: bool = False   # to where nothing was written
    all: bool = False
    long: bool = False    # not in the quick run
    # The smallest ratio that is wanted, by the target it is held against.
    wanted: dict[str, float] = field(default_factory=dict)

    @property
    def reads(self) -> bool:
        return self.rw in ("read", "randread")

    @property
    def sequential(self) -> bool:
        return self.rw in ("read", "write")


def small(name, rw, depth, **more) -> Job:
    return Job(f"random 4 KiB {name}, depth {depth}", rw, "4k", ["--direct=1", *ENGINE_DEPTH[depth]], **more)


def large(name, rw, **more) -> Job:
    return Job(f"sequential 1 MiB {name}", rw, "1m", ["--direct=1", "--iodepth=4"], **more)


def buffered(name, rw, block, **more) -> Job:
    return Job(f"buffered {block[:-1]} KiB {name}", rw, block, ["--ioengine=psync"], **more)


GOAL = {"bare": 0.9, "qcow2": 2.0}
# All reading comes before all writing: what was sealed is not any more then.
JOBS = [
    small("read", "randread", 1, all=True, wanted=GOAL),
    small("read, cold", "randread", 1, cold=True, wanted={**GOAL, "raw": 0.5}),
    small("read", "randread", 16, all=True, long=True, wanted=GOAL),
    small("read, cold", "randread", 16, cold=True, wanted=GOAL),
    large("read", "read", all=True, long=True, wanted=GOAL),
    large("read, cold", "read", cold=True, wanted=GOAL),
    buffered("read", "read", "4k", long=True, wanted=GOAL),
    buffered("read", "read", "64k", long=True, wanted=GOAL),
    buffered("read, cold", "read", "64k", cold=True, long=True, wanted=GOAL),
    small("write", "randwrite", 1, all=True, wanted=GOAL),
    small("write", "randwrite", 16, all=True, long=True, wanted=GOAL),
    small("mix", "randrw", 1, long=True, wanted=GOAL),
    small("mix", "randrw", 16, all=True, wanted=GOAL),
    large("write", "write", all=True, wanted=GOAL),
    buffered("write", "write", "4k", wanted=GOAL),
    buffered("write", "write", "64k", long=True, wanted=GOAL),
    Job("4 KiB overwrite + fsync each", "randwrite", "4k", ["--ioengine=psync", "--fsync=1"],
        all=True, wanted={"bare": 0.8, "qcow2": 2.0}),
    Job("4 KiB first write + fsync each", "randwrite", "4k", ["--ioengine=psync", "--fsync=1"],
        first=True, wanted={"bare": 0.5, "qcow2": 2.0}),
]


def fio(path: str, options: list[str], show: bool) -> dict:
    # A later option of the same name wins: the job's come last.
    command = ["fio", "--name=job", f"--filename={path}", "--output-format=json", "--fallocate=none",
               "--randrepeat=0", "--refill_buffers", "--buffer_compress_percentage=50", *options]
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


class Snapshots:
    """Takes a snapshot of a disk at once and then every 5 seconds."""

    taken = 0

    def __init__(self, image: str) -> None:
        self.directory = os.path.join(os.path.dirname(image), ".snapshots")
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        while not self.ended.is_set():
            Snapshots.taken += 1
            os.mkdir(f"{self.directory}/every-5s-{Snapshots.taken:05}")
            self.ended.wait(5)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_) -> None:
        self.ended.set()
        self.thread.join()
        for name in os.listdir(self.directory):
            if name.startswith("every-5s-"):
                os.rmdir(f"{self.directory}/{name}")


def prepare(target: str, path: str, job: Job, size: int) -> None:
    os.sync()  # what the last job left dirty is not this one's
    if job.cold:
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
            file.write("3")
    elif job.reads and target != "raw":
        # The other targets' data may have driven out what the daemon of this
        # one has in memory. fio itself drops what is kept of the file.
        subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=1M", f"count={size // MIB}", "iflag=direct",
                        "status=none"], check=True)


def figure_of(job: Job, report: dict) -> float:
    """IOPS, or MiB/s of a sequential job; reads and writes together."""
    total = report["read"], report["write"]
    if job.sequential:
        return sum(part["bw_bytes"] for part in total) / MIB
    return sum(part["iops"] for part in total)


def run_on(target: str, path: str, job: Job, size: int, seconds: str, turn: int, common: list[str]) -> float:
    options = [*common, f"--rw={job.rw}", f"--bs={job.block}", "--time_based", f"--runtime={seconds}"]
    if job.first:
        # Each turn in a part of its own.
        part = size // 4 // (1 << 20) << 20
        options += [f"--offset={size + turn % 4 * part}", f"--size={part}"]
    else:
        options += [f"--size={size}", "--norandommap"]
    options += job.options
    prepare(target, path, job, size)
    if target == "snapshots":
        with Snapshots(path):
            return figure_of(job, fio(path, options, False))
    return figure_of(job, fio(path, options, False))


def short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def main() -> None:
    quick = sys.argv[1] == "--quick"
    size, seconds, rounds, results, *named = sys.argv[2:] if quick else sys.argv[1:]
    size, rounds = int(size), int(rounds)
    targets = dict(target.split("=", 1) for target in named)
    may_drop = os.access("/proc/sys/vm/drop_caches", os.W_OK)
    common = [f"--ioengine={engine()}"]
    print(f"\n{'job':36}" + "".join(f"{target:>12}" for target in targets), flush=True)
    for job in JOBS:
        if quick and job.long:
            continue
        if job.cold and not may_drop:
            print(f"{job.name:36}  SKIPPED: only root may drop the caches")
            continue
        chosen = [t for t in targets if job.all or t not in ("snapshots", "many")]
        figures: dict[str, list[float]] = {target: [] for target in chosen}
        for turn in range(rounds):
            for target in chosen if turn % 2 == 0 else reversed(chosen):
                figures[target].append(run_on(target, targets[target], job, size, seconds, turn, common))
        medians = {target: statistics.median(figures[target]) for target in chosen}
        unit = "MiB/s" if job.sequential else "IOPS"
        print(f"{job.name + ', ' + unit:36}"
              + "".join(f"{short(medians[t]) if t in medians else '-':>12}" for t in targets))
        print(f"{'':36}" + "".join(
            f"{short(min(figures[t])) + '..' + short(max(figures[t])) if t in figures else '':>12}" for t in targets),
            flush=True)
        with open(results, "a", encoding="utf-8") as file:
            for against, wanted in job.wanted.items():
                # What is sealed is held against a plain file, where the job says so.
                target = "sealed" if against == "raw" else "fresh"
                if target in medians and against in medians:
                    json.dump({"name": f"{job.name}, {target}", "value": round(medians[target] / medians[against], 3),
                               "unit": f"x {against}", "least": wanted}, file)
                    file.write("\n")
            json.dump({"job": job.name, "of": unit, "runs": figures, "medians": medians}, file)
            file.write("\n")


if __name__ == "__main__":
    main()
