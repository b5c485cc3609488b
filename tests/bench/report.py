#!/usr/bin/env python3
"""Prints what a run of the benchmark found and writes it as one JSON file.

usage: report.py RESULTS OUT

RESULTS has one JSON object a line: name, value, unit and, where a value is
wanted, `least` or `most`; or, of a fio job, job, of (the unit), runs and
medians by target. OUT gets {"machine": …, "jobs": [ … ], "figures": [ … ]}.
"""

import json
import os
import platform
import sys
import time


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    figures = [line for line in lines if "job" not in line]
    jobs = [line for line in lines if "job" in line]
    print(f"\n{'figure':58}{'value':>12}  {'unit':14}{'wanted':14}")
    for figure in figures:
        least, most = figure.get("least"), figure.get("most")
        value, wanted, verdict = figure["value"], "", ""
        if least is not None or most is not None:
            wanted = f">= {least:g}" if least is not None else f"<= {most:g}"
            if value is not None:
                figure["met"] = value >= least if least is not None else value <= most
                verdict = "yes" if figure["met"] else "NO"
        shown = "skipped" if value is None else f"{value:,.2f}"
        print(f"{figure['name']:58}{shown:>12}  {figure['unit']:14}{wanted:10}{verdict}")
    machine = {"kernel": platform.release(), "cpus": os.cpu_count(),
               "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
               "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump({"machine": machine, "jobs": jobs, "figures": figures}, file, indent=1)
        file.write("\n")
    print(f"\nwritten to {sys.argv[2]}")


main()
