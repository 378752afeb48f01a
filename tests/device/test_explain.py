"""A pasted error is named by its own words; what is not known is said to be unknown."""

from __future__ import annotations

import json
import re

import pytest
from built_machines import archs
from hypothesis import given, settings
from hypothesis import strategies as st
from printed import PRINTED, WARNING

from ambidex.device import fingerprints, rules
from ambidex.device.excerpt import excerpt
from ambidex.device.explain import betrayed, explain
from ambidex.device.machine import Gpu
from ambidex.device.pasted import MOST_GPUS


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


def by_the_ends(name: str, cc: str, ends: str) -> str:
    """As torch up to 2.10 prints it, with its line breaks."""
    return (
        f"/lib/torch/cuda/__init__.py:435: UserWarning: \n    Found GPU0 {name} which is of cuda capability {cc}.\n"
        f"    Minimum and Maximum cuda capability supported by this version of PyTorch is\n    {ends}\n    \n"
        "  queued_call()\n"
    )


def by_capabilities(name: str, cc: str, listed: str, last: str) -> str:
    """As torch 2.11 and newer prints it."""
    rows = "".join(f"- {one} which supports hardware CC >={one},<{one[:-2]}.9\n" for one in listed.split())
    return (
        f"UserWarning: Found GPU0 {name} which is of compute capability (CC) {cc}.\nThe following list shows the CCs "
        f"this version of PyTorch was built for and the hardware CCs it supports:\n{rows}{last}\n"
    )


def by_list(name: str, sm: str, listed: str) -> str:
    return (
        f"UserWarning: \n{name} with CUDA capability {sm} is not compatible with the current PyTorch installation.\n"
        f"The current PyTorch install supports CUDA capabilities {listed}.\n"
    )


NO_BUILD = (
    "No published PyTorch CUDA builds for release 2.13.0+cu130 support this GPU. Visit the site to find a "
    "compatible release."
)
REINSTALL = "Your installed torch==2.13.0+cu130 does not include kernels for this GPU."
NEW = "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120"
# Each warning with the cause, and the build that the first remedy names.
WARNINGS = {
    by_the_ends("NVIDIA GB10", "12.1", "(8.0) - (12.0)"): ("false_alarm", "", "sm_121"),
    by_the_ends("NVIDIA GeForce GTX 1080", "6.1", "(7.5) - (12.0)"): ("not_compatible", "+cu126", "sm_61"),
    by_the_ends("Tesla P100-PCIE-16GB", "6.0", "(7.0) - (12.0)"): ("not_compatible", "+cu126", "sm_60"),
    by_capabilities("Orin", "8.7", "8.0 9.0 10.0 11.0 12.0", NO_BUILD): ("not_compatible", "+cu132", "sm_87"),
    by_capabilities("NVIDIA GB10", "12.1", "8.0 9.0 10.0 12.0", REINSTALL): ("false_alarm", "", "sm_121"),
    by_capabilities("Tesla V100-SXM2-16GB", "7.0", "7.5 8.0 9.0 12.0", REINSTALL): (
        "not_compatible",
        "+cu126",
        "sm_70",
    ),
    by_list("Orin", "sm_87", "sm_80 sm_90 sm_100 sm_110 sm_120"): ("not_compatible", "+cu132", "sm_87"),
    by_list("Thor", "sm_110", "sm_80 sm_90 sm_100 sm_120"): ("not_compatible", "+cu13", "sm_110"),
    by_list("TITAN V", "sm_70", NEW): ("not_compatible", "+cu126", "sm_70"),
    by_list("NVIDIA GeForce RTX 5060", "sm_120", "sm_50 sm_60 sm_90"): ("not_compatible", "+cu1", "sm_120"),
    by_list("NVIDIA GB10", "sm_121", "sm_80 sm_90 sm_100 sm_120"): ("false_alarm", "", "sm_121"),
}


@pytest.mark.parametrize("warning", WARNINGS)
def test_every_form_of_torchs_warning_is_judged_by_the_list_that_it_tells(warning: str) -> None:
    cause, build, sm = WARNINGS[warning]
    found = explain(warning)
    assert found.cause == cause
    assert build in found.fix[0]
    assert f"({sm})" in found.seen[0]


@pytest.mark.parametrize("name", ["Orin", "Thor", "TITAN V", "NVIDIA GB10"])
def test_the_name_in_a_warning_is_the_gpus_whatever_it_begins_with(name: str) -> None:
    for warning in (
        by_the_ends(name, "12.1", "(8.0) - (12.0)"),
        by_capabilities(name, "12.1", "8.0 12.0", ""),
        by_list(name, "sm_121", NEW),
    ):
        assert explain(warning).seen[0] == f"GPU {name} (sm_121)"


PREFIXES = st.sampled_from(
    [
        *("", "    ", "\t", "(APIServer pid=1) ", "(RayWorker pid=1234, ip=10.0.0.3) ", "vllm-1  | ", "> "),
        *("[rank0]: ", "[rank1]:[W1122 12:00:00.123456 x.cpp:3] ", "[1,0]<stderr>: ", "0: ", "#12 3.456 "),
        *("2026-11-22T12:00:00.123Z ", "2026-11-22 12:00:00,123 WARNING ", "[2026-11-22 12:00:00] "),
        *("\x1b[0;36m(APIServer pid=1)\x1b[0;0m ", "web-7d4  | 12:00:00 [INFO] "),
    ]
)
GAPS = st.sampled_from([" ", " ", " ", "  ", "\t", "\n", "\n    ", "\r\n", " \n\n  ", "\xa0"])


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(list(WARNINGS)), PREFIXES, st.data())
def test_a_warning_is_judged_alike_however_its_lines_break_and_whatever_stands_before_them(
    warning: str, prefix: str, data: st.DataObject
) -> None:
    words = warning.split()
    laid = words[0] + "".join(data.draw(GAPS) + word for word in words[1:])
    laid = "\n".join(prefix + line for line in laid.split("\n"))
    found, plain = explain(laid), explain(warning)
    assert (found.cause, found.betrays) == (plain.cause, plain.betrays)
    assert found.fix == plain.fix


@settings(deadline=None)
@given(st.sampled_from(list(WARNINGS)), PREFIXES)
def test_a_prefix_before_every_line_changes_nothing_that_is_said(warning: str, prefix: str) -> None:
    assert str(explain("\n".join(prefix + line for line in warning.split("\n")))) == str(explain(warning))


@pytest.mark.parametrize("suffix", ["", "a", "f"])
@pytest.mark.parametrize("entry", ["sm_100", "sm_101", "sm_103", "sm_110", "sm_120", "compute_120"])
def test_a_list_with_any_entry_of_blackwell_is_not_called_older_than_blackwell(
    entry: str, suffix: str
) -> None:
    assert not any("12.6 or older" in line for line in betrayed(archs(f"sm_80 sm_90a {entry}{suffix}")))


def test_the_ends_of_a_list_betray_no_wheel_and_are_not_said_to_hold_no_ptx() -> None:
    found = explain(by_the_ends("NVIDIA GeForce GT 730", "3.5", "(3.7) - (9.0)"))
    assert found.betrays == ()
    assert "no PTX" not in found.text


@given(st.text(), st.sampled_from(list(WARNINGS)))
def test_nothing_in_a_paste_commands_the_terminal(text: str, warning: str) -> None:
    pasted = f"ImportError: DLL load failed while importing {text}\x1b]0;x\x07\n" + warning.replace(
        "GPU0 ", f"GPU0 {text}\x1b[31m"
    )
    assert str(explain(pasted)).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "text",
    ["exit with error\n804 files written\n", "failed to load the next shard in\nlibcuda notes follow\n"],
)
def test_words_that_only_the_end_of_a_line_brings_together_are_no_finding(text: str) -> None:
    assert explain(text).cause == explain(text.replace("\n", "\n\nand then\n")).cause


def test_what_is_typed_on_windows_stands_on_lines_of_its_own() -> None:
    found = explain(
        r"C:\Users\me\torch\cuda\__init__.py: UserWarning: NVIDIA GeForce RTX 5060 with CUDA capability sm_120 is not "
        "compatible with the current PyTorch installation. The current PyTorch install supports CUDA capabilities sm_50 sm_60 sm_61."
    )
    assert any(fix.startswith("$ ") for fix in found.fix)
    assert "&&" not in "".join(found.fix)


def test_a_name_does_not_begin_before_the_sentence_that_tells_it() -> None:
    found = explain(
        "Found 2 CUDA devices.\nUserWarning: Found GPU0 NVIDIA GeForce RTX 5060 which is of cuda capability 12.0.\n"
        "Minimum and Maximum cuda capability supported by this version of PyTorch is (5.0) - (9.0)\n"
    )
    assert "2 CUDA devices" not in found.text


IN_COLOUR = {
    "within the words": "RuntimeError: CUDA error: \x1b[31mno kernel\x1b[39m image is available\x1b[K for execution",
    "by a number of 256": "CUDA error: no \x1b[38:5:1mkernel\x1b[m image is available for execution",
    "with the escape spelled out": r'{"msg": "CUDA error: no \u001b[1mkernel\u001b[0m image is available for execution"}',
    "as cat -v shows it": "CUDA error: no ^[[1mkernel^[[0m image is available for execution",
    "with a title for the window": "\x1b]0;no kernel\x07CUDA error: no kernel\x1b(B image is available for execution",
}


@pytest.mark.parametrize("text", IN_COLOUR.values(), ids=IN_COLOUR)
def test_colours_between_the_words_of_an_error_hide_it_from_nobody(text: str) -> None:
    assert explain(text).cause == "no_kernel_image"
    long = excerpt(("step 1\n" * 100_000 + text).encode()).decode()
    assert explain(long).cause == "no_kernel_image"


LOGGED = [
    *("2026-01-02 03:04:05,123 - INFO - ", "2026-01-02 03:04:05,123 - torch.cuda - WARNING - ", "E       "),
    *(
        "01/02/2026 03:04:05 - WARNING - __main__ - ",
        "WARNING:py.warnings:",
        "Jan  2 03:04:05 host python[123]: ",
    ),
    *(
        "2026-01-02T03:04:05.123456789Z stderr F ",
        "2026-01-02T03:04:05.1234567Z ##[error]",
        "2026/01/02 03:04:05 ",
    ),
    "W0102 03:04:05.123456 140 torch/cuda/__init__.py:230] ",
]


@pytest.mark.parametrize("prefix", LOGGED)
def test_what_a_log_puts_before_its_lines_takes_no_entry_out_of_a_list(prefix: str) -> None:
    lines = WARNING.replace("capabilities sm_50 ", "capabilities\nsm_50\n").splitlines()
    assert str(explain("\n".join(prefix + line for line in lines))) == str(explain(WARNING))


def test_a_list_of_one_is_a_list_where_torch_says_so() -> None:
    found = explain(by_list("NVIDIA H100 PCIe", "sm_90", "sm_80"))
    assert "has code for sm_80 and no PTX" in found.text
    assert any("+cu1" in line for line in found.fix)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "out_of_memory"),
        ("RuntimeError: CUDA error: device-side assert triggered", "device_assert"),
        ("Error 804: forward compatibility was attempted on non supported HW", "forward_compat"),
        ("RuntimeError: Cannot re-initialize CUDA in forked subprocess.", "forked"),
    ],
)
@pytest.mark.parametrize("torch", ["2.9.1+cu128", "2.5.1+cu121"])
def test_an_error_that_is_not_about_code_is_the_cause_whatever_else_the_text_tells(
    error: str, cause: str, torch: str
) -> None:
    gpu = "NVIDIA GeForce RTX 5090"
    found = explain(f"PyTorch version: {torch}\nGPU 0: {gpu}\n{error}")
    assert (found.cause, found.text) == (cause, explain(error).text)
    assert any(gpu in line for line in found.also) == (torch == "2.5.1+cu121"), "which has no code for it"


def test_of_several_gpus_in_the_warnings_the_one_that_cannot_run_is_spoken_of() -> None:
    both = (
        "GPU1 NVIDIA GeForce RTX 5090 which is of cuda capability 12.0",
        "GPU0 NVIDIA GeForce GTX 1080 which is of cuda capability 6.1",
    )
    for first, second in (both, both[::-1]):
        found = explain(
            f"Found {first}.\nFound {second}.\nMinimum and Maximum cuda capability supported by this version of PyTorch is (7.0) - (12.0)"
        )
        assert found.cause == "not_compatible"
        assert "GTX 1080 is sm_61" in found.text


@pytest.mark.parametrize(
    "told", [">>> torch.__version__\n'2.5.1+cu121'", "torch.__version__ = 2.5.1+cu121", "2.5.1+cu121\nTrue"]
)
def test_a_version_that_python_printed_is_read(told: str) -> None:
    found = explain(
        f"{told}\nNVIDIA GeForce RTX 5060\nRuntimeError: CUDA error: no kernel image is available for execution"
    )
    assert "torch 2.5.1+cu121" in found.seen
    assert "2.5.1+cu121 has code for sm_50 to sm_90" in found.text


@pytest.mark.parametrize(
    "told", ["torchvision 0.20.1+cu121", "flash_attn-2.7.4.post1+cu12torch2.5", "mamba 2.2.2+cu122torch2.3"]
)
def test_the_version_of_another_package_is_not_torchs(told: str) -> None:
    assert not any(word.startswith("torch ") for word in explain(f"{told}\nCUDA out of memory").seen)


def test_an_error_of_a_gpus_code_is_not_put_to_a_cpu_build_that_the_missing_tag_suggests() -> None:
    found = explain(
        "C:\\x\ntorch==2.5.1\nNVIDIA GeForce RTX 5090\nCUDA error: no kernel image is available for execution"
    )
    assert found.cause == "no_kernel_image"
    assert "CPU build" not in str(found)


def test_an_attention_kernel_of_old_ptx_is_torchs_own_and_no_library_beside_it() -> None:
    found = explain(
        by_list("NVIDIA GeForce RTX 5090", "sm_120", "sm_50 sm_61 sm_90 compute_37")
        + "FATAL: kernel `fmha_cutlassF_f16_aligned_64x64_rf_sm80` is for sm80-sm100, but was built for sm37"
    )
    assert "beside it" not in found.text
    assert any("+cu1" in line for line in found.fix)


@pytest.mark.parametrize(
    ("cut", "cause"),
    [
        ("RuntimeError: CUDA error: no kernel image is avail", "no_kernel_image"),
        ("NVIDIA GeForce RTX 5090 with CUDA capability sm_120 is not compa", "not_compatible"),
        ("AssertionError: Torch not compiled with CUDA ena", "not_compiled"),
        ("CUDA driver version is insufficient for CUDA ru", "driver_insufficient"),
        ("RuntimeError: Found no NVIDIA driver on yo", "no_driver"),
    ],
)
def test_an_error_that_the_end_of_a_line_cuts_short_is_known(cut: str, cause: str) -> None:
    assert explain(cut).cause == cause


@pytest.mark.parametrize(
    ("sentence", "cause"),
    [
        (
            "RuntimeError: CUDA error: no kernel image is available for execution on the device",
            "no_kernel_image",
        ),
        ("AssertionError: Torch not compiled with CUDA enabled", "not_compiled"),
        ("The NVIDIA driver on your system is too old (found version 12020)", "driver_old"),
    ],
)
def test_a_sentence_that_a_terminal_broke_is_known_wherever_it_broke(sentence: str, cause: str) -> None:
    words = sentence.split()
    for at in range(1, len(words)):
        assert explain(" ".join(words[:at]) + "\r\n" + " ".join(words[at:])).cause == cause


def test_an_explanation_comes_as_json_too() -> None:
    data = json.loads(explain(WARNING).json())
    assert (data["schema"], data["exit_code"], data["cause"]["id"]) == (1, 0, "not_compatible")
    assert any("cu128" in command for fix in data["fixes"] for command in fix["commands"])


def test_the_torch_that_is_installed_is_read_and_not_the_one_that_xformers_was_built_for() -> None:
    text = "xFormers was built for:\n    PyTorch 2.5.1+cu121 with CUDA 1201 (you have 2.6.0+cpu)\n    Python  3.10.11"
    found = explain(text)
    assert "torch 2.6.0+cpu" in found.seen
    assert "built for torch 2.5.1+cu121, and 2.6.0+cpu is installed" in found.text


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("GPU: NVIDIA RTX A6000, 48 GB", "RTX A6000"),
        ("Quadro P2000", "Quadro P2000"),
        ("device NVIDIA B200 is ready", "B200"),
        ("Tesla K80", "K80"),
        ("NVIDIA GeForce MX150", "GeForce MX150"),
        ("NVIDIA TITAN Xp", "Titan Xp"),
        ("NVIDIA L40S", "L40S"),
    ],
)
def test_a_gpu_is_known_by_any_name_of_the_table_behind_its_makers(line: str, name: str) -> None:
    found = explain(
        f"NVIDIA driver 580\n{line}\ntorch 2.0.1+cu117\nCUDA error: no kernel image is available for execution"
    )
    assert found.seen[0].startswith(f"GPU {name} (sm_")


@pytest.mark.parametrize(
    "text",
    [
        "HTTP error 209 returned",
        "No devices were found matching your filter",
        "NVIDIA 750 W power supply, NVIDIA driver",
    ],
)
def test_words_that_only_resemble_an_error_or_a_gpu_are_none(text: str) -> None:
    found = explain(text)
    assert (found.cause, found.seen) == ("", ())


def test_a_gpu_for_which_no_build_has_code_is_sent_to_the_cpu() -> None:
    found = explain(by_list("NVIDIA GeForce GT 710", "sm_35", "sm_50 sm_60 sm_70"))
    assert found.fix == ("train on the CPU: --device cpu",)


# It takes some milliseconds, and took half a minute while a pattern tried every length at every place.
@pytest.mark.timeout(10)
@pytest.mark.parametrize(("known", "text"), [("no_distribution", "torch==" * 60_000), ("no_distribution", "torch-" * 70_000),
                                             ("fmha_arch", "kernel " + "cutlass" * 60_000)])  # fmt: skip
def test_a_long_word_is_read_in_time_that_grows_with_its_length(known: str, text: str) -> None:
    (pattern,) = [one.pattern for one in fingerprints.KNOWN if one.id == known]
    assert re.search(pattern, text) is None


def test_of_a_thousand_gpus_a_few_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[Gpu] = []
    judge = rules.judge
    monkeypatch.setattr(rules, "judge", lambda machine: judged.extend(machine.gpus) or judge(machine))
    warning = "Found GPU0 Card {} which is of cuda capability 5.0. PyTorch no longer supports this GPU because it is too old.\n"
    explain("torch 2.9.0+cu130\n" + "".join(warning.format(n) for n in range(1000)))
    assert 0 < len(judged) <= MOST_GPUS


def test_a_gpu_that_lacks_bf16_is_told_from_torch_that_sees_none() -> None:
    said = "ValueError: Your setup doesn't support bf16/gpu."
    assert explain(f"{said} You need torch>=1.10, using Ampere GPU with cuda>=11.0").cause == "bf16_gpu"
    assert explain(f"{said}\ntorch 2.9.0+cpu").cause == "no_bf16_gpu"


def test_an_explanation_in_json_has_fixes_of_the_doctors_shape() -> None:
    (fix, *_) = json.loads(explain("RuntimeError: Cannot re-initialize CUDA in forked subprocess").json())[
        "fixes"
    ]
    assert set(fix) == {"commands", "installs", "requires", "why"}
    assert "spawn" in fix["why"]


def test_a_version_at_the_end_of_a_sentence_is_read() -> None:
    assert any(
        "2.5.1+cu121" in part for part in explain("no kernel image is available. I have 2.5.1+cu121.").seen
    )
