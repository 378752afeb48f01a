"""A large text, compressed or not, passes through in a few megabytes."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

MEGABYTES = 96
PROGRAM = """
import sys
from pathlib import Path
from ambidex.text import prepare

def peak():  # of this program alone: ru_maxrss would count the process that started it
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) / 1024

before = peak()
made = prepare([sys.argv[1]], tokenizer=sys.argv[3], vocabulary_size=0, field="text", validation_fraction=0.1,
               cache=Path(sys.argv[2]), progress=False)
print(made.train_bytes + made.validation_bytes, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("name", "kind"), [("a.txt", "byte"), ("a.txt.gz", "byte"), ("a.jsonl.gz", "byte")])
def test_memory_does_not_grow_with_the_text(name: str, kind: str, tmp_path: Path, cache: Path) -> None:
    line = b'{"text": "%s"}\n' % (b"a line of some text " * 500)
    lines = MEGABYTES * 1_000_000 // len(line)
    with (
        gzip.open(tmp_path / name, "wb", 1) if name.endswith(".gz") else (tmp_path / name).open("wb") as file
    ):
        for _ in range(lines):
            file.write(line)
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / name, cache, kind],
        capture_output=True,
        text=True,
        check=True,
    )
    size, growth = map(float, ran.stdout.split())
    assert size > 0.9 * MEGABYTES * 1e6
    assert growth < 25  # megabytes
