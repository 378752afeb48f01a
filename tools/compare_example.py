"""Make docs/compare-example.html, a page of `ambidex compare`, and its picture for the README.

python tools/compare_example.py                     trains two legs on this CPU: AVX-512 or what it has, and AVX2
python tools/compare_example.py RUN RUN...          of runs that are there, such as those of two containers

The picture needs Chromium (Debian: chromium); without it the page is written and the picture left as it was.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
PAGE, PICTURE = "compare-example.html", "compare-example.png"
WINDOW = "1140,1690"  # CSS pixels: verdict, loss, and error over floor
TRAIN = ["train", "--preset", "nano", "--steps", "100", "--precision", "fp32", "--threads", "1", "--trace"]
LEGS = {  # name -> flags, environment
    "native": (["--trace-states", "--trace-band", "100"], {}),
    "avx2": (["--from-trace", "native"], {"ATEN_CPU_CAPABILITY": "avx2", "DNNL_MAX_CPU_ISA": "AVX2"}),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="run folders; none: two are trained"
    )
    parser.add_argument("--keep", type=Path, help="train the two in this folder and leave them there")
    parser.add_argument("--to", type=Path, default=DOCS, help="where page and picture go [docs]")
    parser.add_argument("--no-picture", action="store_true", help="write the page alone")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    page = options.to.resolve() / PAGE
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.keep or Path(scratch)).resolve()
        if options.runs:
            folder = Path(os.path.commonpath([run.resolve().parent for run in options.runs]))
        else:
            train(folder)
        # Named from the folder that holds them, so that no path of this machine is on the page.
        names = [os.path.relpath(run.resolve(), folder) for run in options.runs] or list(LEGS)
        code = ambidex(folder, ["compare", *names, "--html", str(page)], {})
    if code <= 2 and not options.no_picture:
        photograph(page, options.to.resolve() / PICTURE)
    return code


def train(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (flags, environment) in LEGS.items():
        if not (folder / name / "card.json").exists() and ambidex(
            folder, [*TRAIN, *flags, "--out", name], environment
        ):
            sys.exit(f"error: the leg {name} was not trained")


def ambidex(folder: Path, words: list[str], environment: dict[str, str]) -> int:
    command = [sys.executable, "-m", "ambidex", *words]
    return subprocess.run(command, cwd=folder, env={**os.environ, **environment}, check=False).returncode


def photograph(page: Path, picture: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        print("no Chromium: the picture stays as it was", file=sys.stderr)
        return
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    subprocess.run([browser, "--headless=new", "--disable-gpu", "--hide-scrollbars", *sandbox, f"--window-size={WINDOW}",
                    f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
