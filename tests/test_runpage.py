"""`ambidex report`: a page for a run that ended, one that goes on, one that is broken, and one that means harm."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import elements, is_harmless, name, words

from ambidex import cardfile, cli, glance, repeat
from ambidex.errors import Exit, Problems
from ambidex.rows import Row, render_rows
from tiny import TINY

CONFIG = {
    "preset": "nano",
    "steps": 8,
    "data": ["builtin"],
    "seed": 3,
    "precision": "auto",
    "threads": 0,
    "time": 0,
    "width": 32,
    "tied": True,
}
CARD: dict[str, Any] = {
    "config": CONFIG, "origins": {"seed": "flag --seed", "width": "preset nano", "steps": "default", "tied": "mine.toml"},
    "precision": "bf16", "threads": 2, "parameters": 1234, "device": {"name": "cpu", "reason": "because <b>"},
    "build": {"torch": "2.13.0+cpu"}, "data": {"hash": "abc", "documents": 1}, "measured": {"peak_bytes": 500_000_000},
}  # fmt: skip
SAMPLES = "# Samples\n\nWhat.\n\n## Step 4 of 8: validation loss 2.000\n\n```text\nfirst <i>\n```\n\n## Step 8 of 8: validation loss 1.000\n\n````text\nlast ``` one\n````\n"


def row(step: int) -> Row:
    return Row(
        step, 64 * step, 5.0 / step, 5.2 / step if step % 4 == 0 else None, 1e-3, 1.0, 0.5 * step, 128.0
    )


def run_at(path: Path, steps: int = 8, card: dict[str, Any] | None = None) -> Path:
    path.mkdir(parents=True)
    (path / "card.json").write_text(json.dumps(CARD if card is None else card), "utf-8")
    (path / "metrics.csv").write_text(
        render_rows([row(n) for n in range(1, steps + 1)], header=True), "utf-8"
    )
    (path / "samples.md").write_text(SAMPLES, "utf-8")
    saved = path / "checkpoints" / f"step-{steps:06d}"
    saved.mkdir(parents=True)
    files = {
        file: {"size": 3, "sha256": ""}
        for file in ("model.safetensors", "optimizer.safetensors", "state.json")
    }
    for file in files:
        (saved / file).write_bytes(b"abc")
    (saved / "manifest.json").write_text(json.dumps({"files": files}))
    return path


def report(run: Path) -> Any:
    assert cli.main(["report", str(run)]) == Exit.DONE
    return is_harmless((run / "report.html").read_text("utf-8"))


def test_the_page_says_what_the_run_was_and_how_it_went(tmp_path: Path) -> None:
    found = report(run_at(tmp_path / "mine"))
    said = words(found)
    for part in ("finished, with 8 of 8 steps", "because <b>", "0.6500 nats per token at step 8", "500 MB", "last ``` one", "first <i>",
                 "flag --seed", "mine.toml", "step 8", "as its manifest says", "ambidex sample"):  # fmt: skip
        assert part in said, part
    headings = ["".join(e.itertext()) for e in elements(found) if name(e) in ("h1", "h2")]
    assert headings[:2] == ["mine", "What it was"]


def test_an_unfinished_run_is_called_so_and_told_how_to_go_on(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run", steps=4)
    said = words(report(run))
    assert "stopped before its end, with 4 of 8 steps" in said
    assert f"ambidex train --resume --out {run}" in said


@pytest.mark.parametrize(
    "harm",
    [
        "no metrics",
        "half a row",
        "binary",
        "no samples",
        "no checkpoints",
        "short file",
        "no manifest",
        "empty card",
    ],
)
def test_a_broken_run_still_gets_its_page(tmp_path: Path, harm: str) -> None:
    run = run_at(tmp_path / "run")
    saved = run / "checkpoints" / "step-000008"
    if harm == "no metrics":
        (run / "metrics.csv").unlink()
    elif harm == "half a row":
        with (run / "metrics.csv").open("a") as file:
            file.write("9,5")
    elif harm == "binary":
        for file in ("metrics.csv", "samples.md"):
            (run / file).write_bytes(bytes(range(256)) * 9)
    elif harm == "no samples":
        (run / "samples.md").unlink()
    elif harm == "no checkpoints":
        (run / "checkpoints").rename(run / "elsewhere")
    elif harm == "short file":
        (saved / "model.safetensors").write_bytes(b"a")
    elif harm == "no manifest":
        (saved / "manifest.json").unlink()
    else:
        (run / "card.json").write_text('{"config": {}}')
    said = words(report(run))
    assert {"short file": "1 bytes instead of 3", "no manifest": "manifest.json: No such file", "no samples": "No sample has been written",
            "no metrics": "No step is written down"}.get(harm, "How to repeat it") in said  # fmt: skip


def test_where_there_is_no_run_the_error_is_that_of_every_command(tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["report", str(tmp_path)]) == Exit.DATA
    assert "There is no run here" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_ends_in_words(tmp_path: Path, capsys: Any) -> None:
    assert (
        cli.main(["report", str(run_at(tmp_path / "run")), "--html", str(tmp_path / "run" / "no" / "x.html")])
        == Exit.CANNOT_WRITE
    )
    assert "The page cannot be written" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="makes a link and a pipe")
def test_a_page_is_written_through_a_link_and_into_a_pipe_and_takes_neither_away(tmp_path: Path) -> None:
    run, link, elsewhere, pipe = (
        run_at(tmp_path / "run"),
        tmp_path / "link",
        tmp_path / "elsewhere",
        tmp_path / "pipe",
    )
    link.symlink_to(elsewhere)
    assert cli.main(["report", str(run), "--html", str(link)]) == Exit.DONE
    assert link.is_symlink()
    assert "</html>" in elsewhere.read_text("utf-8")
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        assert cli.main(["report", str(run), "--html", str(pipe)]) == Exit.DONE
        assert b"</html>" in reader.communicate(timeout=60)[0]
    assert pipe.is_fifo()


JSON = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.just("</style><script>alert(1)</script>")),
                    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x, max_size=3), max_leaves=6)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(st.sampled_from([*CARD, "resumes", "versions", "numerics", "started"]), JSON),
    st.dictionaries(st.sampled_from(list(CONFIG)) | st.text(), JSON),
    st.text(),
)
def test_any_card_and_any_sample_gives_a_page_that_is_only_text(
    tmp_path_factory: Any, card: dict[str, Any], config: dict[str, Any], text: str
) -> None:
    run = run_at(tmp_path_factory.mktemp("hostile") / "run", card={**CARD, **card, "config": config})
    (run / "samples.md").write_text(
        SAMPLES + f"\n## Step 9 of 9: x\n\n```text\n{text}\n```\n", "utf-8", errors="replace"
    )
    try:
        cardfile.read_card(run)
    except Problems:  # no card of ours, and said so
        assert cli.main(["report", str(run)]) == Exit.DATA
    else:
        report(run)


def test_the_command_repeats_what_was_asked_and_what_was_decided() -> None:
    command = shlex.split(repeat.command(CARD))
    assert command[:4] == ["ambidex", "train", "--preset", "nano"]
    assert command[command.index("--seed") + 1] == "3"
    assert command[command.index("--precision") + 1] == "bf16"
    assert command[command.index("--threads") + 1] == "2"
    assert "--tied" in command
    assert "--width" not in command
    assert "--steps" not in command
    by_time = {**CARD, "config": {**CONFIG, "time": 90.0}}
    assert "--steps 8" in repeat.command(by_time)


def test_a_card_without_origins_is_repeated_with_every_setting() -> None:
    assert "--width 32" in repeat.command({key: value for key, value in CARD.items() if key != "origins"})


def test_report_and_top_import_no_torch(tmp_path: Path) -> None:
    run_at(tmp_path / "runs" / "run")
    without = "import sys\nfor n in ('torch', 'numpy', 'pydantic', 'matplotlib', 'filelock', 'tqdm', 'safetensors'): sys.modules[n] = None\n"
    for command in (["report", str(tmp_path / "runs" / "run")], ["top", str(tmp_path / "runs")]):
        code = f"{without}from ambidex.cli import main\nsys.exit(main({command!r}))"
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (found.returncode, found.stderr) == (0, "")


def test_a_run_of_this_program_is_repeated_by_the_command_on_its_page(tmp_path: Path, story: Path) -> None:
    import ambidex

    run = ambidex.train(**{**TINY, "steps": 3}, data=[str(story)], out=str(tmp_path / "first"))
    assert run.card["measured"]["peak_bytes"] > 0
    assert run.card["origins"]["steps"] == "argument steps="
    is_harmless((report(run.path), (run.path / "report.html").read_text("utf-8"))[1])
    again = shlex.split(repeat.command(run.card))[1:]
    assert cli.main([*again, "--out", str(tmp_path / "second")]) == 0
    first, second = run.rows, glance.read_tail(tmp_path / "second" / "metrics.csv")
    assert [r.loss for r in first] == [r.loss for r in second]
