"""What the benches share: finds the command, runs it, and says what it took. Not a bench itself.

Needs Linux: memory is read from /proc.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
MIB = 2**20


@dataclass
class Measured:
    """What a run took. Sizes are in bytes, times in seconds."""

    exit_code: int
    wall: float
    cpu: float
    peak_resident: int
    """Most resident memory of the process and all below it, mapped files (the binary) included."""
    peak_anonymous: int
    """The same without mapped files."""
    peak_temporary: int
    """Most that lay in the temporary folder."""
    left_behind: list[str]
    """Files that lay in the temporary folder afterwards."""
    events: list[dict]
    """What `ingrain run --json` said."""
    errors: str

    def finished(self) -> list[dict]:
        """The stages that ran, in the order in which they ended."""
        return [event for event in self.events if event["event"] == "finished"]

    def tables(self) -> list[dict]:
        return [event for event in self.events if event["event"] == "table"]


def parser(usage: str) -> argparse.ArgumentParser:
    """A parser with the options that all benches have."""
    made = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--ingrain", help="the binary; default: on the PATH, else target/release/ingrain")
    made.add_argument("--store", help="an empty folder or s3://bucket/prefix; default: a temporary folder")
    return made


def binary(named: str | None) -> str:
    """The command to measure, as an absolute path."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target"))
    candidates = [named] if named else ["ingrain", str(target / "release" / "ingrain")]
    found = next(filter(None, map(shutil.which, candidates)), None)
    if found is None:
        sys.exit(f"no binary {' or '.join(candidates)}: `cargo build --release` makes it, `--ingrain` names it")
    return os.path.abspath(found)


def run(command: list[str], work: Path, **environment: str) -> Measured:
    """Runs `ingrain run ... --json` with a cache and a temporary folder of its own below `work`."""
    temporary = work / "temporary"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    environment = {**os.environ, "INGRAIN_CACHE": str(work / "cache"), "TMPDIR": str(temporary), **environment}
    with open(work / "events.jsonl", "wb") as events, open(work / "errors.txt", "wb") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=events, stderr=errors, env=environment)
        peaks = [0, 0, 0]
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            seen = [*tree_memory(process.pid), folder_size(temporary)]
            peaks = [max(pair) for pair in zip(peaks, seen)]
            time.sleep(0.05)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    lines = (work / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return Measured(
        exit_code=process.returncode,
        wall=wall,
        cpu=usage.ru_utime + usage.ru_stime,
        peak_resident=max(peaks[0], usage.ru_maxrss * 1024),
        peak_anonymous=peaks[1],
        peak_temporary=peaks[2],
        left_behind=sorted(str(path.relative_to(temporary)) for path in temporary.rglob("*")),
        events=[json.loads(line) for line in lines],
        errors=(work / "errors.txt").read_text(encoding="utf-8", errors="replace"),
    )


def must_have_run_all(measured: Measured) -> None:
    """Ends the bench if the run failed, or took something from an earlier one."""
    if measured.exit_code != 0:
        sys.exit(f"{measured.errors}\ningrain ended with {measured.exit_code}")
    cached = [event["stage"] for event in measured.events if event["event"] == "cached"]
    if cached:
        sys.exit(f"the store isn't empty: cached were {', '.join(cached)}")


def tree_memory(pid: int) -> tuple[int, int]:
    """Resident and anonymous memory of a process and of all below it."""
    resident = anonymous = 0
    pids = [pid]
    while pids:
        pid = pids.pop()
        try:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                pids += map(int, children.read_text().split())
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name == "VmRSS":
                    resident += int(value.split()[0]) * 1024
                elif name == "RssAnon":
                    anonymous += int(value.split()[0]) * 1024
        except (FileNotFoundError, ProcessLookupError):
            pass  # it has just ended
    return resident, anonymous


def folder_size(folder: Path) -> int:
    """What the files of a folder take on disk."""
    size = 0
    for path in folder.rglob("*"):
        try:
            size += path.lstat().st_blocks * 512
        except FileNotFoundError:
            pass  # removed meanwhile
    return size


def print_stages(measured: Measured) -> None:
    print(f"{'stage':16}{'rows':>10}{'rejects':>9}{'seconds':>10}")
    for stage in measured.finished():
        print(f"{stage['stage']:16}{stage['rows']:10,}{stage['rejects']:9,}{stage['seconds']:10.2f}")


def print_process(measured: Measured) -> None:
    print(f"time: {measured.wall:.2f} s, CPU: {measured.cpu:.2f} s")
    print(
        f"peak memory of the process tree: {measured.peak_resident / MIB:,.0f} MiB resident, "
        f"{measured.peak_anonymous / MIB:,.0f} MiB of it anonymous"
    )
