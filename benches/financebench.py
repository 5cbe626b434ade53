#!/usr/bin/env python3
"""FinanceBench: the PDFs through read, chunk and BM25; recall of the evidence pages among the first 8 and 128 chunks.

    python3 benches/financebench.py financebench_open_source.jsonl FOLDER_OF_PDFS

The files are those of the benchmark's repository (`data/` and `pdfs/`). Not all PDFs need to be there: where PDFs are
searched, only questions about those that are there count. "Evidence pages" are searched without PDFs: the pages that
the benchmark's file holds, of all filings and for all questions.
"""
from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import measure


def main() -> None:
    options = measure.parser(__doc__)
    options.add_argument("questions", type=Path, help="financebench_open_source.jsonl")
    options.add_argument("pdfs", type=Path, help="the folder of the PDFs")
    asked = options.parse_args()

    ingrain = measure.binary(asked.ingrain)
    with tempfile.TemporaryDirectory(prefix="ingrain-bench-") as folder:
        work = Path(folder)
        file_and_store = [
            "--store", asked.store or str(work / "store"),
            "--set", f"vars.questions={asked.questions.resolve()}",
            "--set", f"vars.pdfs={asked.pdfs.resolve() / '*.pdf'}",
        ]
        pipeline = str(measure.HERE / "financebench.yaml")
        measured = measure.run([ingrain, "run", pipeline, "--json", *file_and_store], work)
        measure.must_have_run_all(measured)
        show = [ingrain, "show", pipeline, "recall", "--json", *file_and_store]
        shown = subprocess.run(show, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
    rows = [json.loads(line) for line in shown.splitlines()]

    measure.print_stages(measured)
    print("\n| searched | first chunks | questions | evidence pages | found | recall |\n|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (row["searched"], row["k"])):
        recall = row["found"] / row["pages"]
        cells = [row["searched"], row["k"], row["questions"], row["pages"], row["found"], f"{recall:.3f}"]
        print(f"| {' | '.join(map(str, cells))} |")
    print()
    measure.print_process(measured)


if __name__ == "__main__":
    main()
