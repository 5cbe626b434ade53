#!/usr/bin/env python3
"""Many documents of about 1 KB through read, chunk, exact and near dedup, mix: time, peak memory, spill left behind.

    python3 benches/documents.py [--documents 200000] [--files 40] [--memory 1Gi] [--store s3://bucket/prefix]

Makes the documents from invented words, as gzip JSONL files: 5 % are exact and 5 % near copies of others. To read them
from a bucket, write them once, upload them with any client, and name them:

    python3 benches/documents.py --only-write FOLDER
    python3 benches/documents.py --read 's3://bucket/folder/*.jsonl.gz' --store s3://bucket/prefix
"""
from __future__ import annotations

import gzip
import itertools
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import measure

WORDS = 8000
LENGTHS = (158, 210)
"""Words of a document: these are about 1 KB."""


def vocabulary(draw: random.Random) -> list[str]:
    """Different words of one to four syllables; the first, which are drawn most often, are the shortest."""
    onsets = "b d f g h k l m n p r s t v z br dr st tr sh".split()
    rhymes = "a e i o u an en or".split()
    syllables = [onset + rhyme for onset in onsets for rhyme in rhymes]
    words: set[str] = set()
    while len(words) < WORDS:
        words.add("".join(draw.choices(syllables, k=draw.choice((1, 2, 2, 3, 3, 4)))))
    return sorted(words, key=lambda word: (len(word), word))


def sentences(words: list[str]) -> str:
    """Words as sentences, whose lengths depend on the place alone: another word moves no full stop."""
    made = []
    start = 0
    while start < len(words):
        end = start + 8 + start * 5 % 9
        made.append(" ".join(words[start:end]).capitalize() + ".")
        start = end
    return " ".join(made)


def near_copy(words: list[str], others: list[str], draw: random.Random) -> list[str]:
    """The words with one to three of them replaced: the 5-grams of both agree by more than 0.8 (Jaccard)."""
    copy = list(words)
    for place in draw.sample(range(len(copy)), draw.randint(1, 3)):
        while copy[place] == words[place]:
            copy[place] = draw.choice(others)
    return copy


def write_documents(folder: Path, count: int, files: int) -> None:
    """Writes the documents in shuffled order over the files. An original has one copy at most."""
    began = time.perf_counter()
    draw = random.Random(7)
    words = vocabulary(draw)
    # A few words are drawn often and most of them seldom, as in any language.
    weights = list(itertools.accumulate(1 / (rank + 20) for rank in range(WORDS)))
    copies = count // 20
    originals = count - 2 * copies
    copied = draw.sample(range(originals), 2 * copies)
    exact, near = set(copied[:copies]), set(copied[copies:])

    folder.mkdir(parents=True, exist_ok=True)
    outs = [gzip.open(folder / f"part-{n:03}.jsonl.gz", "wt", compresslevel=3, encoding="utf-8") for n in range(files)]
    written = size = 0

    def write(text: str) -> None:
        nonlocal written, size
        document = {"doc_id": f"doc-{written:07}", "text": text}
        draw.choice(outs).write(json.dumps(document) + "\n")
        written += 1
        size += len(text)

    for n in range(originals):
        drawn = draw.choices(words, cum_weights=weights, k=draw.randint(*LENGTHS))
        text = sentences(drawn)
        write(text)
        if n in exact:
            write(text)
        elif n in near:
            write(sentences(near_copy(drawn, words, draw)))
    for out in outs:
        out.close()
    print(
        f"made {written:,} documents of {size / written:,.0f} bytes on average in {files} files, "
        f"{copies:,} exact and {copies:,} near copies among them, in {time.perf_counter() - began:.0f} s"
    )


def main() -> None:
    options = measure.parser(__doc__)
    options.add_argument("--documents", type=int, default=200_000)
    options.add_argument("--files", type=int, default=40)
    options.add_argument("--memory", default="1Gi", help="passed on to `ingrain run`")
    options.add_argument("--only-write", type=Path, metavar="FOLDER", help="write the documents, and run nothing")
    options.add_argument("--read", metavar="GLOB", help="read these instead, written with the same `--documents`")
    asked = options.parse_args()
    if asked.only_write:
        write_documents(asked.only_write, asked.documents, asked.files)
        return

    ingrain = measure.binary(asked.ingrain)
    with tempfile.TemporaryDirectory(prefix="ingrain-bench-") as folder:
        work = Path(folder)
        if not asked.read:
            write_documents(work / "documents", asked.documents, asked.files)
        command = [
            ingrain, "run", str(measure.HERE / "documents.yaml"), "--json",
            "--store", asked.store or str(work / "store"),
            "--set", f"vars.documents={asked.read or work / 'documents' / '*.jsonl.gz'}",
            "--memory", asked.memory,
        ]
        measured = measure.run(command, work)
    measure.must_have_run_all(measured)

    measure.print_stages(measured)
    rows = {stage["stage"]: stage["rows"] for stage in measured.finished()}
    copies = asked.documents // 20
    print(f"exact leaves {rows['exact']:,}, by construction {asked.documents - copies:,}")
    print(f"near leaves {rows['near']:,}, by construction {asked.documents - 2 * copies:,}")
    measure.print_process(measured)
    print(f"most in the temporary folder: {measured.peak_temporary / measure.MIB:,.0f} MiB")
    print(f"left behind there: {', '.join(measured.left_behind) or 'nothing'}")
    if measured.left_behind or rows["documents"] != asked.documents or rows["exact"] != asked.documents - copies:
        sys.exit("that is wrong: other numbers of documents than were made, or spill left behind")


if __name__ == "__main__":
    main()
