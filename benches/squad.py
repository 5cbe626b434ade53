#!/usr/bin/env python3
"""SQuAD 1.1 through the quickstart's shape: synthesis by the offline teacher, training, closed-book evaluation.

    python3 benches/squad.py train-v1.1.json|dev-v1.1.json [--articles 24] [--questions 500] [--tokens 600k]

Makes a document of each of the first articles, and an open-ended exam of a fixed draw of their questions. Prints what
each stage took, and the tables of the evaluations.
"""
from __future__ import annotations

import json
import random
import re
import sys
import tempfile
import urllib.parse
from pathlib import Path

import measure


def prepare(published: Path, folder: Path, articles: int, questions: int) -> None:
    """Writes documents/*.jsonl, one an article, and exam.jsonl."""
    data = json.loads(published.read_text(encoding="utf-8"))
    if data.get("version") != "1.1":
        sys.exit(f"{published} is SQuAD {data.get('version')}: 1.1 is needed, where every question has an answer")
    (folder / "documents").mkdir()
    exam: list[dict] = []
    characters = 0
    chosen = data["data"][:articles]
    for number, article in enumerate(chosen):
        title = urllib.parse.unquote(article["title"]).replace("_", " ")
        doc_id = f"{number:03}-{re.sub('[^a-z0-9]+', '-', title.lower()).strip('-')}"
        text = "\n\n".join(paragraph["context"].strip() for paragraph in article["paragraphs"])
        characters += len(text)
        document = {"doc_id": doc_id, "title": title, "text": text}
        write_lines(folder / "documents" / f"{doc_id}.jsonl", [document])
        for paragraph in article["paragraphs"]:
            exam += [exam_question(doc_id, question) for question in paragraph["qas"]]
    drawn = random.Random(7).sample(exam, min(questions, len(exam)))
    write_lines(folder / "exam.jsonl", drawn)
    print(f"{len(chosen)} articles, {characters:,} characters; {len(drawn):,} of their {len(exam):,} questions")


def exam_question(doc_id: str, question: dict) -> dict:
    """A question as the format `open_ended` has it. Several people answered the same one: the first answer leads."""
    answers = list(dict.fromkeys(answer["text"].strip() for answer in question["answers"]))
    return {
        "question_id": question["id"],
        "doc_id": doc_id,
        "question": question["question"].strip(),
        "answer": answers[0],
        "answers": answers[1:],
    }


def write_lines(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    options = measure.parser(__doc__)
    options.add_argument("published", type=Path, help="train-v1.1.json or dev-v1.1.json")
    options.add_argument("--articles", type=int, default=24)
    options.add_argument("--questions", type=int, default=500)
    options.add_argument("--tokens", default="600k", help="of the mixture that the student is trained on")
    options.add_argument("--device", default="cpu", help="passed on to `ingrain run`")
    asked = options.parse_args()

    ingrain = measure.binary(asked.ingrain)
    with tempfile.TemporaryDirectory(prefix="ingrain-bench-") as folder:
        work = Path(folder)
        prepare(asked.published, work, asked.articles, asked.questions)
        command = [
            ingrain, "run", str(measure.HERE / "squad.yaml"), "--json",
            "--store", asked.store or str(work / "store"),
            "--set", f"vars.documents={work / 'documents' / '*.jsonl'}",
            "--set", f"vars.exam={work / 'exam.jsonl'}",
            "--set", f"vars.tokens={asked.tokens}",
            "--device", asked.device,
        ]
        measured = measure.run(command, work)
    measure.must_have_run_all(measured)

    measure.print_stages(measured)
    for table in measured.tables():
        print(f"\n{table['stage']}")
        for row in table["rows"]:
            print(f"  {row['metric']:30}{row['value']:10.4f} [{row['low']:.4f}, {row['high']:.4f}]  n = {row['n']}")
    print()
    measure.print_process(measured)


if __name__ == "__main__":
    main()
