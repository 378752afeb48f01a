"""torchrun with two processes on this machine, over gloo: one training, whatever happens to either of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from ambidex import cli
from ambidex.compare.command import compare
from ambidex.errors import Exit
from ambidex.runs import Run
from tiny import TINY, train_words

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="torchrun over gloo was run on Linux only")
EIGHT = {**TINY, "batch_size": 8, "precision": "fp32"}
WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Ended:
    code: int
    text: str
    codes: dict[int, int]  # of the processes that lived to the end, by rank


def torchrun(words: list[str], folder: Path, *options: str, **environment: str) -> Ended:
    """Two processes; bounded, so that a hang is a failure."""
    done = folder / f"done-{len(list(folder.glob('done*')))}"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *options,
    ]
    ran = subprocess.run(
        [*command, str(WORKER), *words], env={**os.environ, "DONE": str(done), **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200, check=False,
    )  # fmt: skip
    codes = {int(p.name[-1]): int(p.read_text()) for p in folder.glob(f"{done.name}.exit-*")}
    return Ended(ran.returncode, ran.stdout, codes)


def two(
    story: Path, out: Path, *options: str, environment: dict[str, str] | None = None, **settings: Any
) -> Ended:
    words = train_words(story, out, **{**EIGHT, **settings})
    return torchrun(words, out.parent, *options, **(environment or {}))


def one(story: Path, out: Path, **settings: Any) -> Path:
    assert cli.main(train_words(story, out, **{**EIGHT, **settings})) == 0
    return out


def weights(run: Path, step: int = 12) -> dict[str, Any]:
    folder = run / "checkpoints" / f"step-{step:06d}"
    return load_file(folder / "model.safetensors") | load_file(folder / "optimizer.safetensors")


def same_bits(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


def steps(run: Path) -> list[int]:
    return [row.step for row in Run(run).metrics]


@pytest.fixture(scope="module")
def straight(story: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps by two processes, without an incident."""
    out = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMBIDEX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        ended = two(story, out)
    assert ended.code == 0, ended.text
    return out


def test_one_process_prints_and_writes_and_the_card_says_how_many_there_were(
    straight: Path, story: Path
) -> None:
    assert steps(straight) == list(range(1, 13))
    card = json.loads((straight / "card.json").read_text())
    assert (card["processes"], card["threads"]) == (2, 1)
    assert {p.name for p in straight.iterdir() if not p.name.startswith(".")} == {
        "card.json", "checkpoints", "loss.png", "metrics.csv", "samples.md", "summary.md", "tokenizer.json"}  # fmt: skip


def test_two_processes_eight_micro_batches_and_one_process_are_the_same_for_compare(
    story: Path, tmp_path: Path
) -> None:
    few = {"layers": 1, "steps": 3, "save_every": 3, "evaluate_every": 3, "sample_tokens": 0, "trace": True}
    reference = one(story, tmp_path / "one", trace_states=True, **few)
    one(story, tmp_path / "eight", micro_batch_size=1, from_trace=str(reference), **few)
    ended = two(story, tmp_path / "two", from_trace=str(reference), **few)
    assert ended.code == 0, ended.text
    assert ended.text.count("device   cpu") == 1, ended.text
    for name in ("eight", "two"):
        verdict = compare([reference, tmp_path / name])[0]
        assert verdict.same, (name, verdict.first)
        assert verdict.modes == ["fed", "state", "free"], name


def test_two_processes_grow_and_draw_candidates_as_one_does(story: Path, tmp_path: Path) -> None:
    changed = {"grow_from": 1, "grow_at": 0.5, "sampled_softmax": 4, "sample_tokens": 0}
    alone = weights(one(story, tmp_path / "one", **changed))
    ended = two(story, tmp_path / "two", **changed)
    assert ended.code == 0, ended.text
    together = weights(tmp_path / "two")
    for name, weight in alone.items():
        assert np.linalg.norm(weight - together[name]) <= 1e-3 * np.linalg.norm(weight), name


def test_a_killed_process_costs_the_steps_since_the_checkpoint_and_no_bit(
    story: Path, tmp_path: Path, straight: Path
) -> None:
    ended = two(story, tmp_path / "run", "--max-restarts", "1", environment={"ACT": "1:6:SIGKILL"})
    assert ended.code == 0, ended.text
    assert "Rank 0 of 2 lost the others at step " in ended.text
    assert "rank 1 did not answer" in ended.text
    assert ", from step " in ended.text
    assert steps(tmp_path / "run") == list(range(1, 13))
    assert same_bits(tmp_path / "run", straight)


def test_a_signal_to_either_stops_both_at_one_step_with_one_checkpoint_and_one_or_two_go_on(
    story: Path, tmp_path: Path, straight: Path
) -> None:
    """2 -> 1 -> 2, and 2 -> 2 besides."""
    out = tmp_path / "run"
    ended = two(story, out, environment={"ACT": "1:4:SIGTERM"}, save_every=100)
    assert ended.codes[1] == Exit.TERMINATED, ended.text
    assert "stopped  after step 4 of 12" in ended.text
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-000004"]
    other = tmp_path / "other"
    subprocess.run(["cp", "-r", out, other], check=True)

    again = torchrun(["train", "--resume", "--out", str(other)], tmp_path)
    assert again.code == 0, again.text
    assert same_bits(other, straight)

    alone = subprocess.run(
        [sys.executable, str(WORKER), "train", "--resume", "--out", str(out)], capture_output=True, text=True,
        env={**os.environ, "RANK": "0", "WORLD_SIZE": "1", "ACT": "0:8:SIGTERM", "DONE": str(tmp_path / "alone")},
        timeout=200, check=False,
    )  # fmt: skip
    assert alone.returncode == Exit.TERMINATED, alone.stderr
    assert "from step 4" in alone.stdout
    last = torchrun(["train", "--resume", "--out", str(out)], tmp_path)
    assert last.code == 0, last.text
    assert "from step 8" in last.text
    assert steps(out) == list(range(1, 13))
    found, wanted = weights(out), weights(straight)
    for name, values in wanted.items():
        assert abs(found[name] - values).max() <= 1e-3 * abs(values).max() + 1e-7, name
    assert [leg["processes"] for leg in json.loads((out / "card.json").read_text())["resumes"]] == [1, 2]


def test_a_rank_with_another_text_or_setting_is_named_before_the_first_step(
    story: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text(story.read_text() + "one line more\n")
    ended = two(story, tmp_path / "run", environment={"FLAGS_OF_1": f"--data {other}"})
    assert set(ended.codes.values()) <= {Exit.USAGE}, ended.text
    assert "Rank 1 of 2 has other text or numbers than rank 0." in ended.text
    assert "found: data hash: " in ended.text
    assert not (tmp_path / "run").exists()
    ended = two(story, tmp_path / "run", environment={"FLAGS_OF_1": "--learning-rate 0.5"})
    assert "Rank 1 of 2 has other settings than rank 0.\n  found: learning_rate: 0.5" in ended.text
    assert not (tmp_path / "run").exists()


def test_processes_whose_compiled_code_differs_keep_the_same_weights_with_muon(
    story: Path, tmp_path: Path
) -> None:
    ended = two(
        story, tmp_path / "run", environment={"CC_OF_1": "/no/compiler"}, optimizer="muon", save_every=3
    )
    assert ended.code == 0, ended.text
    assert steps(tmp_path / "run") == list(range(1, 13))


def test_a_process_that_does_not_answer_ends_the_wait_with_rank_and_step(story: Path, tmp_path: Path) -> None:
    ended = two(story, tmp_path / "run", environment={"ACT": "1:5:sleep"}, collective_timeout=2)
    assert ended.code != 0
    assert ended.codes[0] == Exit.LOST_PROCESS, ended.text
    assert (
        "Rank 0 of 2 lost the others at step 5, adding up" in ended.text or "at step 5, telling" in ended.text
    )
    assert "rank 1 did not answer" in ended.text
    assert "within 2 s (--collective-timeout)" in ended.text


def test_what_fails_at_one_rank_alone_ends_all_and_is_said_once(story: Path, tmp_path: Path) -> None:
    ended = two(story, tmp_path / "run", environment={"FLAGS_OF_1": "--data /nowhere/at-all.txt"})
    assert set(ended.codes.values()) <= {Exit.DATA}, ended.text
    assert ended.text.count("/nowhere/at-all.txt") == 1, ended.text
    assert 'Traceback (most recent call last):\n  File "' + str(WORKER) not in ended.text
