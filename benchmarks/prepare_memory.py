"""Peak memory and seconds of preparing a large file: `python benchmarks/prepare_memory.py`.

Writes text made of this Python's standard library to a temporary folder (give `--folder` where /tmp is
small), prepares it twice in fresh processes, and prints what each took; the second start finds the tokens in
the cache. The peak is the resident memory of that process alone, interpreter and libraries included; `growth`
leaves those out. Linux only: it reads /proc/self/status.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PROGRAM = """
import json, sys, time
from pathlib import Path
from ambidex.text import prepare

def peak():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

before, started = peak(), time.perf_counter()
made = prepare([sys.argv[1]], tokenizer=sys.argv[3], vocabulary_size=int(sys.argv[4]), field="text",
               validation_fraction=0.05, cache=Path(sys.argv[2]), progress=False)
print(json.dumps({"seconds": round(time.perf_counter() - started, 2), "peak_MiB": round(peak()),
                  "growth_MiB": round(peak() - before), "tokens": made.train_tokens + made.validation_tokens,
                  "bytes": made.train_bytes + made.validation_bytes}))
"""


def lines(megabytes: int, records: bool) -> Iterator[bytes]:
    """About so many bytes of source code, each round told apart, as text or as JSON lines."""
    modules = [
        path.read_text(encoding="utf-8", errors="replace")
        for path in Path(argparse.__file__).parent.glob("*.py")
    ]
    left = megabytes * 1_000_000
    for number in itertools.count():
        for module in modules:
            text = f"# round {number}\n{module}"
            line = (json.dumps({"text": text}) + "\n" if records else text).encode()
            yield line[:left] if not records else line
            left -= len(line)
            if left <= 0:
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--tokenizer", default="byte", choices=["byte", "char", "bpe"])
    parser.add_argument("--vocabulary-size", type=int, default=8192)
    parser.add_argument("--form", default="txt", choices=["txt", "txt.gz", "jsonl", "jsonl.gz"])
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        data = Path(folder) / f"data.{asked.form}"
        with gzip.open(data, "wb", 1) if asked.form.endswith(".gz") else data.open("wb") as file:
            for line in lines(asked.megabytes, "jsonl" in asked.form):
                file.write(line)
        for start in ("first start", "second start"):
            ran = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    PROGRAM,
                    data,
                    f"{folder}/cache",
                    asked.tokenizer,
                    str(asked.vocabulary_size),
                ],
                stdout=subprocess.PIPE,
                check=True,
            )
            print(f"{asked.form} {asked.tokenizer}, {start}: {ran.stdout.decode().strip()}", flush=True)


if __name__ == "__main__":
    main()
