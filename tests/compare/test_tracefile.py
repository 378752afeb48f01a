"""A trace comes back as it was written; anything else ends in a sentence and exit code 3, never in a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import FREE, table
from safetensors.numpy import load, save

from ambidex.compare import folder, tracefile
from ambidex.compare.tracefile import Leg, Trace
from ambidex.errors import Exit, Problems


def a_trace() -> Trace:
    legs = {FREE: table(), Leg("state", 8, "fp32"): table(steps=(8, 9))}
    return Trace("me", "me", "fp32", legs, {"a": ["b"]}, {"output a": [4, 5]}, ["fp64"])


WRITTEN = tracefile.write(a_trace())


def refused(path: Path) -> Problems:
    with pytest.raises(Problems) as caught:
        tracefile.read(path)
    assert caught.value.exit_code == Exit.DATA
    return caught.value


def test_a_trace_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "trace.safetensors"
    path.write_bytes(WRITTEN)
    found, written = tracefile.read(path), a_trace()
    assert (found.identity, found.precision, found.feeds, found.shapes) == (
        "me",
        "fp32",
        {"a": ["b"]},
        {"output a": [4, 5]},
    )
    for leg, one in written.legs.items():
        assert found.legs[leg].keys == one.keys
        assert np.array_equal(found.legs[leg].sums, one.sums)
        assert np.array_equal(found.legs[leg].floor, one.floor)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_bytes_end_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trace.safetensors"
    path.write_bytes(content)
    assert "The trace cannot be read." in str(refused(path))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_trace_is_read_or_refused_and_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(WRITTEN)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 3000) | st.integers(0, len(content) - 1))] = data.draw(
            st.integers(0, 255)
        )
    cut = data.draw(st.just(len(content)) | st.integers(0, len(content)))
    path = tmp_path / "trace.safetensors"
    path.write_bytes(bytes(content[:cut]))
    try:
        tracefile.read(path)
    except Problems as problems:
        assert problems.exit_code == Exit.DATA


def index(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, np.ndarray]], Any]:
    def apply(arrays: dict[str, np.ndarray]) -> None:
        text = json.loads(arrays["index"].tobytes())
        change(text)
        arrays["index"] = np.frombuffer(json.dumps(text).encode(), dtype=np.uint8)

    return apply


def put(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, np.ndarray]], Any]:
    return lambda arrays: arrays.__setitem__(name, make(arrays[name]))


def with_first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def make(array: np.ndarray) -> np.ndarray:
        changed = array.copy()
        changed.flat[0] = value
        return changed

    return make


HOSTILE = {
    "another format": index(lambda i: i.update(format=2)),
    "no format": index(lambda i: i.pop("format")),
    "an unknown mode": index(lambda i: i["legs"][0].update(mode="magic")),
    "a negative step": index(lambda i: i["legs"][0]["rows"][0].__setitem__(0, -1)),
    "a step that is no number": index(lambda i: i["legs"][0]["rows"][0].__setitem__(0, "0")),
    "a huge name": index(lambda i: i["legs"][0]["rows"][0].__setitem__(2, "x" * 5000)),
    "a row twice": index(lambda i: i["legs"][0]["rows"].__setitem__(1, i["legs"][0]["rows"][0])),
    "a leg twice": index(lambda i: i["legs"].append(i["legs"][0])),
    "more rows named than held": index(lambda i: i["legs"][1]["rows"].append([9, "output", "x"])),
    "fewer rows named than held": index(lambda i: i["legs"][1]["rows"].pop()),
    "legs that are a text": index(lambda i: i.update(legs="free")),
    "feeds that are a list": index(lambda i: i.update(feeds=[1])),
    "shapes of negative size": index(lambda i: i.update(shapes={"a": [-1]})),
    "sums of another shape": put("sums", lambda a: a[:, :3].copy()),
    "sums in fp32": put("sums", lambda a: a.astype(np.float32)),
    "sums flat": put("sums", lambda a: a.reshape(-1)),
    "a sum that is not a number": put("sums", with_first(np.nan)),
    "an infinite norm": put("statistics", with_first(np.inf)),
    "a negative count": put("statistics", with_first(-1.0)),
    "a negative floor": put("floor", with_first(-1.0)),
    "no rows at all": put("floor", lambda a: a[:0].copy()),
    "no index": lambda arrays: arrays.pop("index"),
    "an index that is no JSON": put("index", lambda a: np.frombuffer(b"{", dtype=np.uint8)),
    "an index that is deep": put("index", lambda a: np.frombuffer(b"[" * 100_000, dtype=np.uint8)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_we_would_not_have_written_is_refused(name: str, tmp_path: Path) -> None:
    arrays = dict(load(WRITTEN))
    HOSTILE[name](arrays)
    path = tmp_path / "trace.safetensors"
    path.write_bytes(save(arrays))
    refused(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"config": 3}', b"[" * 100_000, b"\xff\xfe"])
def test_a_card_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_bytes(content)
    with pytest.raises(Problems) as caught:
        folder.read(tmp_path)
    assert caught.value.exit_code == Exit.DATA


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=200))
def test_metrics_are_read_as_far_as_they_are_numbers(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(
        "step,loss,lr,grad_norm\n1,2.5,0.001,1.0\n" + tail, "utf-8", errors="surrogatepass", newline=""
    )
    rows = folder.read_metrics(path)
    assert all(np.isfinite(row.loss) for row in rows)
