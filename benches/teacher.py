#!/usr/bin/env python3
"""Requests/s of the teacher client against a server of a known latency, as a share of in-flight / latency.

    python3 benches/teacher.py [--latency 200] [--in-flight 256] [--waves 32]

Starts a chat server on loopback, a process of its own, which answers each request well after `--latency` milliseconds
(0: at once), and runs teacher.yaml against it. The client sends one request alone first, to see whether the server
works at all; then there are enough others to fill all places in flight `--waves` times.
"""
from __future__ import annotations

import asyncio
import json
import multiprocessing
import tempfile
import time
import zlib
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import measure

SPAWN = multiprocessing.get_context("spawn")


@dataclass
class Counts:
    """What the server saw. Times are in seconds."""

    requests: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    connections: int = 0
    first: float = 0.0
    last: float = 0.0
    cpu: float = 0.0


class Chat(asyncio.Protocol):
    """A connection: HTTP/1.1, kept alive, one request after the other."""

    def __init__(self, latency: float, counts: Counts):
        self.latency = latency
        self.counts = counts
        self.unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.counts.connections += 1

    def data_received(self, data: bytes) -> None:
        self.unread += data
        head, blank, rest = self.unread.partition(b"\r\n\r\n")
        length = content_length(head)
        if not blank or len(rest) < length:
            return
        body, self.unread = rest[:length], rest[length:]
        counts = self.counts
        if counts.requests == 0:
            counts.first = time.monotonic()
        counts.requests += 1
        counts.in_flight += 1
        counts.most_in_flight = max(counts.most_in_flight, counts.in_flight)
        asyncio.get_running_loop().call_later(self.latency, self.answer, body)

    def answer(self, body: bytes) -> None:
        self.counts.in_flight -= 1
        if not self.transport.is_closing():
            self.transport.write(response(body))
        self.counts.last = time.monotonic()


def content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0


def response(body: bytes) -> bytes:
    """A chat completion with one question and answer, which depend on the request alone."""
    number = zlib.crc32(body)
    pair = {
        "question": f"Which number has entry {number:08x} in the register of the harbour?",
        "explanation": f"The register lists entry {number:08x} under its number.",
        "answer": str(number % 9973),
    }
    text = json.dumps({"pairs": [pair]})
    completion = {
        "id": "bench",
        "object": "chat.completion",
        "created": 0,
        "model": "steady",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": len(body) // 4, "completion_tokens": len(text) // 4},
    }
    data = json.dumps(completion).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


def serve(latency: float, control: Connection) -> None:
    """Serves until the other end of `control` says something: sends the port first, the counts at the end."""
    asyncio.run(serve_until_told(latency, control))


async def serve_until_told(latency: float, control: Connection) -> None:
    loop = asyncio.get_running_loop()
    counts = Counts()
    server = await loop.create_server(lambda: Chat(latency, counts), "127.0.0.1", 0, backlog=4096)
    started = time.process_time()
    control.send(server.sockets[0].getsockname()[1])
    told = asyncio.Event()
    loop.add_reader(control.fileno(), told.set)
    await told.wait()
    loop.remove_reader(control.fileno())
    counts.cpu = time.process_time() - started
    control.send(asdict(counts))


def write_documents(file: Path, count: int) -> None:
    with open(file, "w", encoding="utf-8") as out:
        for n in range(count):
            text = (
                f"Berth {n} of the harbour lies {n % 97} metres from the light and was dug in {1700 + n % 300}. "
                f"It takes {n % 13 + 1} boats."
            )
            out.write(json.dumps({"doc_id": f"berth-{n}", "title": f"Berth {n}", "text": text}) + "\n")


def main() -> None:
    options = measure.parser(__doc__)
    options.add_argument("--latency", type=float, default=200, help="of the server, in milliseconds")
    options.add_argument("--in-flight", type=int, default=256, help="requests that may be under way at once")
    options.add_argument("--waves", type=int, default=32, help="how often all places in flight are filled")
    asked = options.parse_args()
    latency = asked.latency / 1000
    requests = 1 + asked.waves * asked.in_flight
    ingrain = measure.binary(asked.ingrain)

    with tempfile.TemporaryDirectory(prefix="ingrain-bench-") as folder:
        work = Path(folder)
        write_documents(work / "documents.jsonl", requests)
        control, theirs = SPAWN.Pipe()
        server = SPAWN.Process(target=serve, args=(latency, theirs), daemon=True)
        server.start()
        theirs.close()
        port = control.recv()
        command = [
            ingrain, "run", str(measure.HERE / "teacher.yaml"), "--json",
            "--store", asked.store or str(work / "store"),
            "--set", f"vars.documents={work / 'documents.jsonl'}",
            "--set", f"vars.url=http://127.0.0.1:{port}/v1",
            "--set", f"vars.in_flight={asked.in_flight}",
        ]
        client = measure.run(command, work, NO_PROXY="127.0.0.1")
        control.send("stop")
        seen = Counts(**control.recv())
        server.join()
    measure.must_have_run_all(client)

    seconds = seen.last - seen.first
    rate = seen.requests / seconds
    print(f"requests: {seen.requests:,} of {requests:,}, at most {seen.most_in_flight} in flight")
    print(f"connections: {seen.connections:,}")
    print(f"from the first request to the last answer: {seconds:.2f} s, {rate:,.0f} requests/s")
    if latency:
        ideal = asked.in_flight / latency
        possible = requests / ((1 + asked.waves) * latency)
        print(f"share of in-flight / latency ({ideal:,.0f}/s): {rate / ideal:.1%}")
        print(f"of which so many requests allow {possible / ideal:.1%}, since the first goes alone")
    busy = client.cpu / client.wall
    print(f"client: {1000 * client.cpu / seen.requests:.2f} ms of CPU a request, {busy:.0%} of a core")
    measure.print_process(client)
    print(f"server: {seen.cpu:.2f} s of CPU, {seen.cpu / seconds:.0%} of its one core")
    if seen.requests != requests:
        raise SystemExit(f"{seen.requests} requests were sent for {requests} documents")


if __name__ == "__main__":
    main()
