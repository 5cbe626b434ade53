#!/usr/bin/env python3
"""A run of a pipeline of which everything is cached: wall time of the whole process, median of several.

    python3 benches/warm.py [--runs 20] [--pipeline pipelines/quickstart.yaml] [--store s3://bucket/prefix]

Runs the pipeline (default: warm.yaml beside this file, 12 stages) until nothing is left to do, then measures.
"""
from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure


def main() -> None:
    options = measure.parser(__doc__)
    options.add_argument("--runs", type=int, default=20)
    options.add_argument("--pipeline", default=str(measure.HERE / "warm.yaml"))
    asked = options.parse_args()

    ingrain = measure.binary(asked.ingrain)
    with tempfile.TemporaryDirectory(prefix="ingrain-bench-") as folder:
        store = asked.store or str(Path(folder) / "store")
        command = [ingrain, "run", asked.pipeline, "--store", store, "--json"]
        environment = {**os.environ, "INGRAIN_CACHE": str(Path(folder) / "cache")}

        def run() -> tuple[float, list[dict]]:
            start = time.perf_counter()
            done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
            seconds = time.perf_counter() - start
            if done.returncode != 0:
                sys.exit(f"{done.stderr}\ningrain ended with {done.returncode}")
            return seconds, [json.loads(line) for line in done.stdout.splitlines()]

        first, _ = run()
        run()  # the files of the binary and the store are in the page cache now
        times = []
        for _ in range(asked.runs):
            seconds, events = run()
            if events[-1]["executed"] != 0:
                sys.exit("a stage ran again: not all of them are cached")
            times.append(seconds)
    cached = sum(event["event"] == "cached" for event in events)
    print(f"first run: {first:.2f} s")
    print(
        f"{cached} stages cached, {asked.runs} runs: median {1000 * statistics.median(times):.1f} ms, "
        f"fastest {1000 * min(times):.1f} ms, slowest {1000 * max(times):.1f} ms"
    )


if __name__ == "__main__":
    main()
