"""A pasted error is named by its own words; what is not known is said to be unknown."""

from __future__ import annotations

import re

import pytest
from built_machines import archs
from hypothesis import given, settings
from hypothesis import strategies as st
from printed import PRINTED, WARNING

from ambidex.device import fingerprints
from ambidex.device.explain import betrayed, explain


@pytest.mark.parametrize(("text", "cause"), PRINTED.items())
def test_a_known_error_is_named_and_comes_with_something_to_do(text: str, cause: str) -> None:
    found = explain(f"Traceback (most recent call last):\n  File 'x.py', line 1\n{text}\nAborted\n")
    assert found.cause == cause
    assert found.fix
    assert found.exit_code == 0
    assert "{" not in str(found)


@pytest.mark.parametrize("known", fingerprints.KNOWN, ids=lambda known: known.id)
def test_every_fingerprint_is_shown_by_an_example(known: fingerprints.Fingerprint) -> None:
    unshown = {"not_compatible", "cudnn_arch", "guard"}  # these three are shown below
    assert known.id in {*PRINTED.values(), *unshown}


def test_torchs_own_warning_gives_the_builds_that_have_code() -> None:
    found = explain(WARNING)
    assert found.cause == "not_compatible"
    assert "sm_120" in found.text
    assert any("cu128" in line for line in found.fix)


def test_a_warning_that_is_a_false_alarm_is_called_one() -> None:
    text = (
        "NVIDIA GB10 with CUDA capability sm_121 is not compatible with the current PyTorch installation.\n"
        "The current PyTorch install supports CUDA capabilities sm_80 sm_90 sm_100 sm_120."
    )
    assert explain(text).cause == "false_alarm"


def test_torch_is_cleared_where_its_own_list_has_the_gpu() -> None:
    text = (
        "NVIDIA GeForce RTX 4090, torch 2.9.1+cu128\nCUDA error: no kernel image is available for execution"
    )
    found = explain(text)
    assert found.cause == "extension"
    assert "beside it" in found.text


def test_a_driver_number_is_read_as_a_cuda_version() -> None:
    assert "CUDA 12.8" in explain("The NVIDIA driver on your system is too old (found version 12080).").text


def test_the_root_is_the_cause_and_the_symptom_stands_beside_it() -> None:
    text = "Requirement already satisfied: torch\nAssertionError: Torch not compiled with CUDA enabled"
    found = explain(text)
    assert found.cause == "no_op_install"
    assert any("CPU build" in line for line in found.also)


@pytest.mark.parametrize(
    ("listed", "word"),
    [
        ("sm_50 sm_60 sm_61 sm_70", "Windows"),
        ("sm_37 sm_50 sm_61 compute_37", "compute_37: a Windows wheel for CUDA 11.8"),
        ("sm_37 sm_50 sm_60", "Linux wheel for CUDA 11.8"),
        ("sm_80 sm_86 sm_90 compute_90", "nightly of July to November 2024"),
    ],
)
def test_a_list_betrays_its_wheel(listed: str, word: str) -> None:
    assert any(word in line for line in betrayed(archs(listed)))


def test_a_plain_list_betrays_nothing() -> None:
    assert betrayed(archs("sm_75 sm_80 sm_86 sm_90 sm_100 sm_120")) == ()


@pytest.mark.parametrize("text", ["hello", "KeyError: 'x'", "torch is great", "sm_90", "0803 4999 error 80"])
def test_an_unknown_text_is_called_unknown_and_not_guessed_at(text: str) -> None:
    found = explain(text)
    assert found.cause == ""
    assert found.exit_code == 30
    assert "known here" in str(found)


def test_an_empty_text_is_asked_for() -> None:
    assert "paste" in str(explain(" \n"))


WORDS = st.sampled_from([*PRINTED, WARNING, "{0}", "{", "sm_120 ", "found version ", "%s", "\n"])


@settings(deadline=None)
@given(st.one_of(st.text(), st.lists(st.one_of(st.text(max_size=12), WORDS), max_size=6).map("".join)))
def test_no_text_breaks_it(text: str) -> None:
    assert re.search(r"\w", str(explain(text)))


def test_a_long_log_is_read_in_time() -> None:
    lines = "step 1 loss 2.3 sm_ nvcc ptxas Value undefined symbol torch 2.\n" * 20_000
    assert explain(lines + "CUDA out of memory").cause == "out_of_memory"


def test_the_three_that_need_a_context_are_known_too() -> None:
    assert explain("CUDNN_STATUS_NOT_SUPPORTED_ARCH_MISMATCH").cause == "cudnn_arch"
    assert explain("x.py:3 tried to start CUDA, but the CPU is forced").cause == "guard"
