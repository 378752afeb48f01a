"""The page of a comparison: the verdict first, whatever it is; every part there; hostile folders stay text; small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import CARD, FREE, folder, table
from reading import elements, is_harmless, name, words

from ambidex import cli
from ambidex.compare import tracefile
from ambidex.compare.curves import rounding_band
from ambidex.compare.judge import judge
from ambidex.compare.page import page
from ambidex.compare.ratios import depth_order
from ambidex.compare.tracefile import Key, Leg, Trace
from ambidex.errors import Exit
from ambidex.rows import Row, render_rows

GUILTY = "model.layers.1.self_attn.q_proj"
FAULTY = {Key(0, "update", f"{GUILTY}.weight"): 212.0}
EVIL = "</title><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[2J\u202e"


def rows(steps: int = 12, off: float = 0.0) -> list[Row]:
    return [
        Row(n, 64 * n, 5.0 / n + off, 5.1 / n if n % 4 == 0 else None, 1e-3, 1.0, 0.5 * n, 128.0 + n)
        for n in range(1, steps + 1)
    ]


def written(path: Path, *, off: float = 0.0, changed: dict[Key, float] | None = None, card: dict[str, Any] | None = None,
            trace: bool = True) -> Path:  # fmt: skip
    """A run folder on disk, as compare finds it."""
    path.mkdir(parents=True)
    (path / "card.json").write_text(
        json.dumps({**CARD, "measured": {"peak_bytes": 434_000_000}, **(card or {})}), "utf-8"
    )
    (path / "metrics.csv").write_text(render_rows(rows(off=off), header=True), "utf-8")
    if trace:
        found = Trace(
            "a",
            "a",
            "fp32",
            {FREE: table(changed)},
            losses={"one ulp, 1": [row.loss * (1 + 1e-7) for row in rows()]},
        )
        (path / "trace.safetensors").write_bytes(tracefile.write(found))
    return path


def compared(file: Path, *paths: Path) -> tuple[int, str]:
    code = cli.main(["compare", *map(str, paths), "--html", str(file)])
    return code, file.read_text("utf-8")


def headings(document: Any) -> list[str]:
    return ["".join(e.itertext()) for e in elements(document) if name(e) in ("h1", "h2")]


def test_the_verdict_stands_first_and_every_part_is_there(tmp_path: Path) -> None:
    code, text = compared(
        tmp_path / "page.html", written(tmp_path / "cpu"), written(tmp_path / "gpu", off=1e-7)
    )
    found = is_harmless(text)
    assert code == Exit.DONE
    assert headings(found)[0].startswith("cpu and gpu are the same")
    assert headings(found)[1] == "Verdict"
    for part in (
        "Loss",
        "Error over floor",
        "Speed and memory",
        "What else differs",
        "What was not judged",
        "How to read",
    ):
        assert any(part in heading for heading in headings(found)), part
    assert "434 MB" in words(found)
    captions = [e for e in elements(found) if name(e) == "caption"]
    assert len(captions) == len([e for e in elements(found) if name(e) == "table"])


def test_a_run_that_differs_is_named_with_step_stage_and_module(tmp_path: Path) -> None:
    paths = [
        written(tmp_path / "cpu"),
        written(tmp_path / "bridge"),
        written(tmp_path / "gpu", changed=FAULTY),
    ]
    code, text = compared(tmp_path / "page.html", *paths)
    assert code == Exit.DIFFERENT
    assert (
        headings(is_harmless(text))[0]
        == f"bridge and gpu are different: they part at step 0, in the update of {GUILTY}"
    )
    assert "cpu → bridge: the same" in words(is_harmless(text))
    assert "bridge → gpu: different" in words(is_harmless(text))


def test_runs_that_cannot_be_compared_get_a_page_that_says_why(tmp_path: Path) -> None:
    other = written(tmp_path / "other", card={"config": {"seed": 7, "layers": 2}})
    code, text = compared(tmp_path / "page.html", written(tmp_path / "cpu"), other)
    assert code == Exit.USAGE
    said = words(is_harmless(text))
    assert "cpu and other cannot be compared" in said
    assert "--seed 7" in said
    assert "--seed 0, as in the reference" in said


@pytest.mark.parametrize("missing", ["trace", "metrics", "both"])
def test_what_a_run_lacks_is_said_and_the_rest_is_shown(tmp_path: Path, missing: str) -> None:
    a, b = (
        written(tmp_path / "a", trace=missing == "metrics"),
        written(tmp_path / "b", off=0.5, trace=missing == "metrics"),
    )
    if missing in ("metrics", "both"):
        (b / "metrics.csv").unlink()
        (a / "metrics.csv").unlink()
    code, text = compared(tmp_path / "page.html", a, b)
    said = words(is_harmless(text))
    assert code == (Exit.DONE if missing == "metrics" else Exit.USAGE)
    assert ("there is no curve to draw" in said) == (missing != "trace")


def test_a_page_that_cannot_be_written_still_gets_its_verdict_printed(tmp_path: Path, capsys: Any) -> None:
    a, b = written(tmp_path / "a"), written(tmp_path / "b")
    assert (
        cli.main(["compare", str(a), str(b), "--html", str(tmp_path / "no" / "page.html")])
        == Exit.CANNOT_WRITE
    )
    said = capsys.readouterr()
    assert "a -> b" in said.out
    assert "The page cannot be written" in said.err


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.just(EVIL), st.text(min_size=1)), st.one_of(st.just(EVIL), st.text()),
       st.recursive(st.one_of(st.none(), st.integers(), st.floats(), st.text()), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=5))  # fmt: skip
def test_hostile_names_and_cards_stay_text(folder_name: str, module: str, value: object) -> None:
    one, two = table(), table({Key(0, "output", "model.layers.0.mlp"): 50.0})
    for found in (one, two):
        found.keys[:] = [Key(k.step, k.kind, f"{module}{k.name}"[:1000]) for k in found.keys]
        found.__post_init__()
    card = {"threads": value, "device": {"name": module}, "measured": value, "build": value, "cpu": value}
    reference = folder("x", legs={FREE: one})
    run = folder(folder_name.replace("\0", "") or "y", legs={FREE: two}, card=card)
    is_harmless(page([judge(reference, run)]))


def test_the_page_of_a_large_model_is_small(tmp_path: Path) -> None:
    """24 blocks, long names, ten thousand steps."""
    from made import tensor

    from ambidex.compare.fingerprint import fingerprint
    from ambidex.compare.tracefile import Table

    keys = [Key(step, kind, f"model.layers.{n}.{'long_' * 12}{part}") for step in (0, 1, 2, 4, 8)
            for n in range(24) for part in ("q", "k", "v", "o", "gate", "up", "down") for kind in ("output", "gradient", "update")]  # fmt: skip
    some = fingerprint(tensor(Key(0, "output", "x")))
    big = Table.of(dict.fromkeys(keys, some))
    big.floor[:] = np.where(np.arange(len(keys)) % 3 == 0, 0.2, 1e-6)
    paths = []
    for which in ("a", "b"):
        paths.append(written(tmp_path / which))
        trace = Trace("a", "a", "fp32", {FREE: big}, losses={"x": [1.0] * 10_000})
        (paths[-1] / "trace.safetensors").write_bytes(tracefile.write(trace))
        (paths[-1] / "metrics.csv").write_text(render_rows(rows(10_000), header=True), "utf-8")
    _, text = compared(tmp_path / "page.html", *paths)
    assert len(text) < 500_000


def test_a_trace_of_a_thousand_states_and_blocks_is_no_large_page() -> None:
    many = {Leg("state", start, "fp32"): table(steps=(start,)) for start in range(1000)}
    for n, one in enumerate(many.values()):
        one.keys[:] = [Key(k.step, k.kind, k.name.replace("layers.0", f"layers.{n}")) for k in one.keys]
        one.__post_init__()
    assert len(page([judge(folder("a", legs=many), folder("b", legs=many, origin="a"))])) < 500_000


def test_the_band_is_what_other_roundings_did_and_never_falls() -> None:
    own = rows(4)
    made = folder("a")
    assert made.trace is not None
    made.trace.legs.clear()
    made.trace.losses = {
        "one ulp, 1": [own[0].loss, own[1].loss * 1.001, own[2].loss],
        "one ulp, 2": [own[0].loss * 0.9999] * 1,
    }
    band = rounding_band(made, own)
    assert [step for step, _, _ in band] == [1, 2, 3]
    assert [round(widest, 6) for _, _, widest in band] == [0.0001, 0.001, 0.001]


def test_a_trace_without_losses_has_the_band_of_its_floor() -> None:
    made = folder("a")
    band = rounding_band(made, rows(4))
    assert [step for step, _, _ in band] == [1, 2]
    assert {widest for _, _, widest in band} == {1e-6}


def test_losses_of_a_trace_survive_writing_and_nonsense_is_refused() -> None:
    trace = Trace("a", "a", "fp32", {FREE: table()}, losses={"one ulp, 1": [5.5, 4.25]})
    assert tracefile.parse(tracefile.write(trace)).losses == trace.losses
    for wrong in ({"x": ["<b>"]}, {"x": [True]}, {"x": [float("nan")]}, {"x": 3}, 3):
        trace.losses = wrong  # type: ignore[assignment]
        with pytest.raises((ValueError, TypeError, AttributeError)):
            tracefile.parse(tracefile.write(trace))


def test_depth_is_the_order_of_the_forward_with_enclosing_modules_after_what_they_hold() -> None:
    verdict = judge(folder("a"), folder("b"))
    from ambidex.compare.align import views

    assert verdict.reference.trace
    assert verdict.run.trace
    order = depth_order(views(verdict.reference.trace, verdict.run.trace))
    assert (
        order.index("model.layers.0.self_attn.q_proj")
        < order.index("model.layers.0.self_attn")
        < order.index("model.layers.0")
    )
    assert (
        order.index("model.layers.0")
        < order.index("model.layers.1.self_attn.q_proj")
        < order.index("model.layers.1")
    )
