"""Tokens per second of training, ours beside what else there is: `python benchmarks/training.py`, or `tox run -e bench`.

One model shape, random tokens, every contestant in a process of its own with a fresh allocator, and in turns:
`ours` in both precisions; `plain`, the usual PyTorch loop on the same model (eager, default allocator, AdamW
not fused, clip_grad_norm_), in fp32 or under autocast; `transformers`, its Trainer on Qwen3ForCausalLM, where
--transformers-python names an interpreter that has it. The first step of each is left out, the first three on a GPU.
`--device cuda` runs all of them there, ours also compiled, or with each kernel `started` by the host instead of
replayed; on a CPU, ours with `torch`'s own operations between products. The share of peak is of the fastest product of the model's
own shapes, measured in the same process. `--clock cpu` counts processor time instead of the wall's, for a machine that
others use too; it means something with --threads 1 only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[1] / "src"
PRESETS = SOURCE / "ambidex" / "presets"
CONTESTANTS = ("ours bf16", "plain fp32", "ours fp32", "transformers fp32", "transformers bf16")
ON_REQUEST = ("ours bf16 compiled", "ours bf16 started", "ours bf16 torch", "plain bf16")
NOT_COUNTED = {"cpu": 1, "cuda": 3}  # first steps, which pay for memory, threads and the choice of kernels
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="45m")
    parser.add_argument("--context", type=int, default=0, help="tokens of a sequence; 0: the preset's")
    parser.add_argument("--batch-size", type=int, default=0, help="sequences of a step; 0: the preset's")
    parser.add_argument("--device", choices=tuple(NOT_COUNTED), default="cpu")
    parser.add_argument("--steps", type=int, default=3, help="steps measured in each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each contestant, in turns")
    parser.add_argument("--threads", type=int, default=0, help="0: the cores of this machine")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--only", nargs="*", default=list(CONTESTANTS), choices=CONTESTANTS + ON_REQUEST)
    parser.add_argument(
        "--transformers-python", default="", help="an interpreter that has transformers and accelerate"
    )
    parser.add_argument("--json", default="", help="a file to write everything to")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child, json.loads(sys.stdin.read()))))
        return
    job = job_of(options)
    contestants = [c for c in options.only if "transformers" not in c or options.transformers_python]
    found: dict[str, list[dict[str, Any]]] = {contestant: [] for contestant in contestants}
    for _ in range(options.rounds):
        for contestant in contestants:
            found[contestant].append(in_a_child(contestant, job, options.transformers_python))
            print(f"{contestant}: {found[contestant][-1]}", file=sys.stderr, flush=True)
    report = {"job": job, "machine": machine(), "runs": found, "load_at_the_end": os.getloadavg()}
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(table(report))


def job_of(options: argparse.Namespace) -> dict[str, Any]:
    preset = tomllib.loads((PRESETS / f"{options.preset}.toml").read_text("utf-8"))
    names = (
        "vocabulary_size",
        "layers",
        "width",
        "heads",
        "kv_heads",
        "feed_forward",
        "context",
        "batch_size",
    )
    shape = {name: preset[name] for name in names}
    shape["context"] = options.context or shape["context"]
    shape["batch_size"] = options.batch_size or shape["batch_size"]
    threads = options.threads or len(os.sched_getaffinity(0))
    return {
        "preset": options.preset,
        **shape,
        "steps": options.steps,
        "threads": threads,
        "clock": options.clock,
        "device": options.device,
    }


def machine() -> dict[str, str]:
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith(("model name", "cpu family", "model\t"))][:3]  # fmt: skip
    return {"cpu": ", ".join(names), "python": platform.python_version(), "system": platform.platform()}


def in_a_child(contestant: str, job: dict[str, Any], transformers_python: str) -> dict[str, Any]:
    python = transformers_python if "transformers" in contestant else sys.executable
    # For the count of operations and the peak, which every contestant is measured by.
    paths = [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run([python, __file__, "--child", contestant], input=json.dumps(job), text=True,
                          stdout=subprocess.PIPE, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


def child(contestant: str, job: dict[str, Any]) -> dict[str, Any]:
    who, precision, *way = contestant.split()
    import torch

    torch.set_num_threads(job["threads"])
    job["way"] = " ".join(way)
    times = {"ours": ours, "plain": plain, "transformers": by_transformers}[who](job, precision)
    counted = times[NOT_COUNTED[job["device"]] :]
    rate = job["batch_size"] * job["context"] / statistics.median(counted)
    found = {
        "seconds": counted,
        "first_step_seconds": times[0],
        "tokens_per_second": rate,
        "peak_megabytes": peak_megabytes(job["device"]),
        "torch": torch.__version__,
    }
    if job["device"] == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found | {"share_of_peak": rate * our_shape(job).operations_per_token() / peak(job, precision)}


def peak_megabytes(device: str) -> int:
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def peak(job: dict[str, Any], precision: str) -> float:
    """Operations per second of the fastest product of this shape, in the precision that the contestant computed in."""
    import torch

    from ambidex.engine import Device

    torch.set_grad_enabled(False)
    device, rows = Device(job["device"], precision, job["threads"]), job["batch_size"] * job["context"]
    sizes = [
        (job["width"], 3 * job["width"]),
        (job["width"], 2 * job["feed_forward"]),
        (job["feed_forward"], job["width"]),
    ]
    return max(device.matmul_rate(rows, *size) for size in sizes)


def our_shape(job: dict[str, Any]) -> Any:
    from ambidex.model import Shape

    names = ("vocabulary_size", "layers", "width", "heads", "kv_heads", "feed_forward", "context")
    return Shape(**{name: job[name] for name in names})


def our_model(job: dict[str, Any]) -> Any:
    from ambidex.model import LanguageModel, initialise

    model = LanguageModel(our_shape(job))
    initialise(model, seed=0)
    return model.to(job["device"])


def batches(job: dict[str, Any]) -> list[Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    size = (job["batch_size"], job["context"] + 1)
    count = job["steps"] + NOT_COUNTED[job["device"]]
    return [torch.randint(job["vocabulary_size"], size, generator=generator) for _ in range(count)]


def timed(job: dict[str, Any], step: Callable[[Any], None]) -> list[float]:
    clock, times = CLOCKS[job["clock"]], []
    for text in batches(job):
        started = clock()
        step(text.to(job["device"]))
        finish(job)
        times.append(clock() - started)
    return times


def finish(job: dict[str, Any]) -> None:
    if job["device"] == "cuda":
        import torch

        torch.cuda.synchronize()


def ours(job: dict[str, Any], precision: str) -> list[float]:
    from ambidex.engine import Device
    from ambidex.loss import cross_entropy_sum
    from ambidex.optim import Optimizer

    way = job["way"]
    device = Device(job["device"], precision, job["threads"], fused=way != "torch")
    model = our_model(job)
    forward = device.compiled(model)[0] if way == "compiled" else model
    optimizer = Optimizer(model, kind="adamw", betas=(0.9, 0.95), epsilon=1e-8, momentum=0.95, weight_decay=0.1,
                          clip=1.0, products=device.muon_precision(), norms_at_once=device.norms_at_once())  # fmt: skip

    def learn(inputs: Any, targets: Any, predicted: int, scale: Any) -> Any:
        with device.autocast():
            loss = cross_entropy_sum(model, forward(inputs), targets) / predicted
        (loss * scale).backward()
        return loss.detach()

    if way != "started":
        learn = device.replayed(learn, list(model.parameters()))

    def step(text: Any) -> None:
        inputs, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()
        learn(inputs, targets, targets.numel(), 1.0).cpu()
        optimizer.clip_gradients()
        optimizer.step(1e-3)
        optimizer.zero_gradients()

    found = timed(job, step)
    if why_not := getattr(learn, "why_not", ""):
        print(f"not replayed: {why_not}", file=sys.stderr)
    return found


def plain(job: dict[str, Any], precision: str) -> list[float]:
    import torch
    import torch.nn.functional as F

    model = our_model(job)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)

    def step(text: Any) -> None:
        with torch.autocast(job["device"], torch.bfloat16, enabled=precision == "bf16"):
            logits = model.logits(model(text[:, :-1]))
            loss = F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return timed(job, step)


def by_transformers(job: dict[str, Any], precision: str) -> list[float]:
    import tempfile

    from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainerCallback, TrainingArguments

    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=job["vocabulary_size"], hidden_size=job["width"], intermediate_size=job["feed_forward"],
            num_hidden_layers=job["layers"], num_attention_heads=job["heads"], num_key_value_heads=job["kv_heads"],
            head_dim=job["width"] // job["heads"], max_position_embeddings=job["context"], tie_word_embeddings=True,
            use_cache=False,
        )
    )  # fmt: skip
    clock, ends = CLOCKS[job["clock"]], [CLOCKS[job["clock"]]()]

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ends[0] = clock()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            finish(job)
            ends.append(clock())

    rows = [{"input_ids": row[:-1], "labels": row[:-1]} for text in batches(job) for row in text]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=job["steps"] + NOT_COUNTED[job["device"]],
            per_device_train_batch_size=job["batch_size"], use_cpu=job["device"] == "cpu",
            bf16=precision == "bf16", report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Watch()]).train()
    return [after - before for before, after in itertools.pairwise(ends)]


def table(report: dict[str, Any]) -> str:
    job, runs = report["job"], report["runs"]
    gpus = sorted({run["gpu"] for found in runs.values() for run in found if "gpu" in run})
    where = ", ".join(gpus) or f"{job['threads']} threads, {report['machine']['cpu']}"
    lines = [f"{job['preset']}, {job['context']} x {job['batch_size']} tokens a step, {job['clock']} clock, {where}", "",
             "| | tokens/s, median | lowest to highest | peak memory, MB | share of peak | times plain |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    rates = {who: sorted(run["tokens_per_second"] for run in found) for who, found in runs.items()}
    base = statistics.median(rates["plain fp32"]) if rates.get("plain fp32") else 0.0
    for who, found in runs.items():
        middle = statistics.median(rates[who])
        memory = statistics.median(run["peak_megabytes"] for run in found)
        share = statistics.median(run["share_of_peak"] for run in found)
        times = f"{middle / base:.2f}" if base else ""
        lines.append(
            f"| {who} | {middle:,.0f} | {rates[who][0]:,.0f} to {rates[who][-1]:,.0f} | {memory:,.0f} "
            f"| {share:.0%} | {times} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
