#!/usr/bin/env python3
"""Millions of remembered answers: what it takes to open a memo of them and to look some up; beside it the same in SQLite.

    python3 benches/memo.py [--entries 10000000] [--lookups 100000]

Runs `cargo bench --workspace --bench memo`, which makes its own answers and looks them up, then fills a table with as many answers
of the same size, reads as many of them in a fresh process, and prints both.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MIB = 2**20
SYLLABLES = "ba ten ri lo ment qua si der in no tra vel ku pes on al".split()
BENCH = "cargo bench -q --workspace --bench memo --"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--entries", type=int, default=10_000_000)
    options.add_argument("--lookups", type=int, default=100_000)
    options.add_argument("--bench", default=BENCH, help="the command that runs the memo's part")
    options.add_argument("--look-up", metavar="FILE", help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.look_up:
        print(json.dumps(look_up(asked.look_up, asked.entries, asked.lookups)))
        return

    size = ["--entries", str(asked.entries), "--lookups", str(asked.lookups)]
    done = subprocess.run([*shlex.split(asked.bench), *size, "--json"], stdout=subprocess.PIPE, encoding="utf-8")
    if done.returncode != 0:
        sys.exit("the memo's part failed")
    memo = json.loads(done.stdout.splitlines()[-1])
    with tempfile.TemporaryDirectory(prefix="ingrain-bench-") as folder:
        file = str(Path(folder) / "answers.sqlite")
        start = time.perf_counter()
        fill(file, asked.entries)
        seconds = time.perf_counter() - start
        stored = Path(file).stat().st_size
        command = [sys.executable, __file__, "--look-up", file, *size]
        sqlite = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    print(f"{asked.entries:,} answers; {asked.lookups:,} keys that are there, and as many that aren't")
    print(f"{'':28}{'made':>10}{'stored':>12}{'opened':>10}{'present':>10}{'absent':>10}{'peak memory':>14}")
    print_row("memo, first time", memo["make_s"], memo["store_bytes"], memo["first"])
    print_row("memo, after that", memo["make_s"], memo["store_bytes"], memo["second"])
    print_row("SQLite", seconds, stored, sqlite)
    mine = memo["second"]
    whole = [sum(of[name] for name in ["open_s", "present_s", "absent_s"]) for of in (mine, sqlite)]
    print(f"memo / SQLite: time {whole[0] / whole[1]:.2f}, peak memory {mine['peak_bytes'] / sqlite['peak_bytes']:.1f}")


def print_row(name: str, made: float, stored: int, of: dict) -> None:
    print(
        f"{name:28}{made:8.1f} s{stored / MIB:8,.0f} MiB{of['open_s']:8.2f} s{of['present_s']:8.2f} s{of['absent_s']:8.2f} s"
        f"{of['peak_bytes'] / MIB:10,.0f} MiB"
    )


def key(kind: str, n: int) -> bytes:
    return hashlib.blake2b(f"{kind} {n}".encode(), digest_size=32).digest()


def answer(n: int) -> str:
    """About 300 bytes."""
    state = n * 0x9E3779B97F4A7C15 % 2**64 | 1
    text = f"Answer {n}:"
    while len(text) < 190:
        state ^= state << 13 & 2**64 - 1
        state ^= state >> 7
        state ^= state << 17 & 2**64 - 1
        text += " " + "".join(SYLLABLES[(state >> shift) % 16] for shift in (20, 24, 28))
    usage = f'{{"input_tokens":{700 + n % 100},"output_tokens":60}}'
    return f'{{"text":"{text}","finish":"stop","usage":{usage},"model":"a-teacher-of-some-size","created_ms":{n}}}'


def fill(file: str, entries: int) -> None:
    """In the order of keys: the quickest way to fill such a table."""
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("CREATE TABLE answers (key BLOB PRIMARY KEY, answer TEXT) WITHOUT ROWID")
    keys = sorted((key("present", n), n) for n in range(entries))
    with connection:
        connection.executemany("INSERT INTO answers VALUES (?, ?)", ((name, answer(n)) for name, n in keys))
    connection.close()


def look_up(file: str, entries: int, lookups: int) -> dict:
    start = time.perf_counter()
    connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    connection.execute("SELECT 1 FROM answers LIMIT 1").fetchone()
    said = {"open_s": time.perf_counter() - start}
    for kind in ("present", "absent"):
        start = time.perf_counter()
        found = 0
        for n in range(lookups):
            number = n * 0x9E3779B97F4A7C15 % 2**64 % entries
            row = connection.execute("SELECT answer FROM answers WHERE key = ?", (key(kind, number),)).fetchone()
            found += row is not None and json.loads(row[0])["created_ms"] == number
        said[f"{kind}_s"] = time.perf_counter() - start
        if found != (lookups if kind == "present" else 0):
            sys.exit(f"{found} of {lookups} {kind} keys were found")
    said["peak_bytes"] = peak()
    return said


def peak() -> int:
    """The most memory that this process had: `ru_maxrss` would count the one that started it, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
