#!/usr/bin/env python3
"""Training and generation beside PyTorch: `ingrain doctor --full` and the same work in transformers, by turns, on one machine.

Needs PyTorch and transformers. Threads are the same on both sides. On a CUDA device PyTorch computes in bf16 with
`torch.compile`; on the CPU both compute in 32 bits, and PyTorch isn't compiled.
"""

import argparse
import json
import os
import statistics
import subprocess
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from measure import binary


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ingrain", default=None, help="the binary; by default as the other benches find it")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:0")
    parser.add_argument("--shapes", default="tiny,4x128", help="as `ingrain doctor --shapes`")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--turns", type=int, default=3, help="how often each side is measured")
    parser.add_argument("--seconds", type=float, default=4.0, help="what a measurement takes at least")
    return parser.parse_args()


def ours(args, shape):
    """What the command measures with a shape: the shape, and rates by name and batch."""
    call = [args.ingrain, "doctor", "--device", args.device, "--full", "--json", "--shapes", shape, "--seconds", str(args.seconds)]
    environment = os.environ | {"RAYON_NUM_THREADS": str(args.threads)}
    said = subprocess.run(call, env=environment, check=True, capture_output=True, text=True).stdout
    lines = [json.loads(line) for line in said.splitlines()]
    wrong = [line for line in lines if line["kind"] == "compared" and not line["passes"]]
    if wrong:
        raise SystemExit(f"numbers that aren't the CPU's: {wrong}")
    rates = {(line["what"], line.get("batch")): line["value"] for line in lines if line["kind"] == "rate"}
    return next(line for line in lines if line["kind"] == "shape"), rates


def model(shape, device):
    config = LlamaConfig(
        vocab_size=shape["vocabulary"], hidden_size=shape["hidden"], intermediate_size=shape["feed_forward"],
        num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"], num_key_value_heads=shape["key_value_heads"],
        tie_word_embeddings=shape["tied"], max_position_embeddings=8192, attn_implementation="sdpa",
    )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        return LlamaForCausalLM(config).to(dtype)


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work, device):
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def repeated(measure, seconds):
    """The median of what `measure` gives, after two times that don't count."""
    found = []
    for _ in range(2):
        measure()
    start = time.perf_counter()
    while len(found) < 5 or time.perf_counter() - start < seconds:
        found.append(measure())
    return statistics.median(found)


def training(shape, device, seconds):
    """Tokens per second of steps over packed documents, each seen alone, with AdamW and the norm clipped."""
    batch, length = shape["batch"], shape["sequence"]
    net = model(shape, device)
    net.train()
    run = torch.compile(net) if device.type == "cuda" else net
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(0, shape["vocabulary"], (batch, length), device=device)
    document = torch.arange(length, device=device) * shape["documents"] // length
    positions = torch.cat([torch.arange(int(count), device=device) for count in torch.bincount(document)])
    seen = (document[:, None] == document[None, :]) & torch.ones(length, length, dtype=torch.bool, device=device).tril()
    mask = seen[None, None].expand(batch, 1, length, length)
    labels = ids.clone()
    labels[:, positions == 0] = -100

    def step():
        optimizer.zero_grad(set_to_none=True)
        run(input_ids=ids, attention_mask=mask, position_ids=positions.expand(batch, -1), labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    return batch * length / repeated(lambda: timed(step, device), seconds)


@torch.no_grad()
def decoding(shape, device, batch, seconds):
    """Tokens per second of greedy generation with a cache, without what reading the prompts takes."""
    net = model(shape, device).eval()
    ids = torch.randint(3, shape["vocabulary"], (batch, shape["prompt"]), device=device)
    mask = torch.ones_like(ids)

    def run(new):
        net.generate(ids, attention_mask=mask, do_sample=False, min_new_tokens=new, max_new_tokens=new, pad_token_id=0)

    def behind_the_prompt():
        first = timed(lambda: run(1), device)
        return timed(lambda: run(shape["new"]), device) - first

    return batch * (shape["new"] - 1) / repeated(behind_the_prompt, seconds)


def main():
    args = arguments()
    args.ingrain = binary(args.ingrain)
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {args.threads} threads"
    print(f"{hardware}, PyTorch {torch.__version__}: tokens/s, medians of {args.turns} turns")
    print(f"{'shape':8} {'what':18} {'ingrain':>12} {'PyTorch':>12} {'ratio':>7}")
    for name in args.shapes.split(","):
        found = {}
        for _ in range(args.turns):
            shape, rates = ours(args, name)
            theirs = {("training", None): training(shape, device, args.seconds)}
            theirs |= {("decode", batch): decoding(shape, device, batch, args.seconds) for batch in (1, 32)}
            for key, value in theirs.items():
                if key in rates:
                    found.setdefault(key, []).append((rates[key], value))
        for (what, batch), pairs in found.items():
            mine, other = (statistics.median(values) for values in zip(*pairs))
            label = what if batch is None else f"{what}, batch {batch}"
            print(f"{name:8} {label:18} {mine:12,.0f} {other:12,.0f} {mine / other:7.2f}")


if __name__ == "__main__":
    main()
