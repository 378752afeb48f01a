"""GPU names: what people type finds the GPU that they mean, and never another one."""

from __future__ import annotations

import pytest

from ambidex.device import gpus
from ambidex.errors import Problems


@pytest.mark.parametrize(
    ("typed", "name", "cc"),
    [
        ("RTX 5060", "GeForce RTX 5060", (12, 0)),
        ("RTX 5060 Ti", "GeForce RTX 5060 Ti", (12, 0)),
        ("rtx5060ti", "GeForce RTX 5060 Ti", (12, 0)),
        ("NVIDIA GeForce RTX 5060 Laptop GPU", "GeForce RTX 5060", (12, 0)),
        ("  nvidia   GEFORCE rtx-5060 ", "GeForce RTX 5060", (12, 0)),
        ("5090", "GeForce RTX 5090", (12, 0)),
        ("RTX 5090D", "GeForce RTX 5090 D", (12, 0)),
        ("4070 ti super", "GeForce RTX 4070 Ti SUPER", (8, 9)),
        ("RTX 3050 6GB Laptop GPU", "GeForce RTX 3050", (8, 6)),
        ("GeForce GTX 1650 with Max-Q Design", "GeForce GTX 1650", (7, 5)),
        ("GTX 1060 6GB", "GeForce GTX 1060", (6, 1)),
        ("A100", "A100", (8, 0)),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "A100", (8, 0)),
        ("RTX A1000", "RTX A1000", (8, 6)),
        ("a1000", "RTX A1000", (8, 6)),
        ("A6000", "RTX A6000", (8, 6)),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada", (8, 9)),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000 Blackwell", (12, 0)),
        ("Quadro RTX 6000", "Quadro RTX 6000", (7, 5)),
        ("Tesla V100-SXM2-16GB", "V100", (7, 0)),
        ("NVIDIA H100 80GB HBM3", "H100", (9, 0)),
        ("H100 NVL", "H100", (9, 0)),
        ("NVIDIA GH200 480GB", "GH200", (9, 0)),
        ("GB10", "GB10", (12, 1)),
        ("NVIDIA Jetson AGX Thor Developer Kit", "Jetson AGX Thor", (11, 0)),
        ("NVIDIA B300 SXM6 AC", "B300", (10, 3)),
        ("NVIDIA GeForce RTX 3060 Lite Hash Rate", "GeForce RTX 3060", (8, 6)),
        ("GRID T4-16Q", "T4", (7, 5)),
        ("GeForce MX330", "GeForce MX330", (6, 1)),
        ("GeForce MX130", "GeForce MX130", (5, 0)),
        ("GTX 980M", "GeForce GTX 980M", (5, 2)),
        ("GTX 960M", "GeForce GTX 960M", (5, 0)),
        ("NVIDIA T550 Laptop GPU", "T550", (7, 5)),
        ("Tesla K40m", "K40m", (3, 5)),
        ("compute capability 8.9", "GPU of compute capability 8.9", (8, 9)),
        ("GB 10", "GB10", (12, 1)),
        ("dgx spark", "DGX Spark", (12, 1)),
        ("Orin (nvgpu)", "Jetson Orin", (8, 7)),
        ("NVIDIA Thor", "Jetson Thor", (11, 0)),
        ("Tesla T4", "T4", (7, 5)),
        ("L40S", "L40S", (8, 9)),
        ("Quadro T400", "T400", (7, 5)),
        ("NVIDIA TITAN RTX", "Titan RTX", (7, 5)),
        ("NVIDIA TITAN X (Pascal)", "Titan X Pascal", (6, 1)),
        ("GeForce GTX TITAN X", "GTX Titan X", (5, 2)),
        ("Titan Xp", "Titan Xp", (6, 1)),
        ("K80", "K80", (3, 7)),
    ],
)
def test_what_people_type_finds_what_they_mean(typed: str, name: str, cc: tuple[int, int]) -> None:
    found = gpus.find(typed)
    assert (found.name, found.cc) == (name, cc)


@pytest.mark.parametrize("typed", ["sm_120", "SM_120", "sm120", "12.0", "sm_120a", "compute_120", "cc 12.0"])
def test_a_capability_is_understood_in_every_spelling(typed: str) -> None:
    assert gpus.find(typed).cc == (12, 0)


def test_every_name_of_the_table_finds_itself_however_it_is_dressed() -> None:
    for gpu in gpus.known():
        for dressed in (
            gpu.name,
            gpu.name.upper(),
            f"NVIDIA {gpu.name}",
            gpu.name.replace(" ", "-"),
            f"{gpu.name} 24GB",
        ):
            assert gpus.find(dressed).cc == gpu.cc, dressed
            assert gpus.find(dressed).name == gpu.name, dressed


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("RTX 5065", ["GeForce RTX 5060"]),
        ("RTX 6000", ["RTX 6000 Ada (8.9)", "Quadro RTX 6000 (7.5)", "RTX PRO 6000 Blackwell (12.0)"]),
        ("titan x", ["Titan X Pascal (6.1)", "GTX Titan X (5.2)"]),
        ("banana", ["read as 'banana'", "RTX 5060 Ti", "sm_120", "12.0"]),
        ("", ["no name"]),
        ("RTX", ["no GPU that the table has"]),
        ("sm_999", ["99.9", "12.0"]),
        ("12.8", ["no GPU has compute capability 12.8"]),
    ],
)
def test_a_miss_exits_2_with_what_was_read_and_what_is_near(typed: str, words: list[str]) -> None:
    with pytest.raises(Problems) as caught:
        gpus.find(typed)
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value)


def test_a_gpu_newer_than_the_table_is_judged_by_the_same_rule() -> None:
    assert gpus.find("sm_130").cc == (13, 0)


def test_the_machine_is_named_where_a_gpu_lives_in_one_kind_alone() -> None:
    assert {gpus.find(name).machine for name in ("GB10", "Jetson Orin", "Jetson Thor")} == {"aarch64"}
    assert gpus.find("RTX 5060").machine == ""


@pytest.mark.parametrize(
    ("typed", "name"), [("rtx4060laptop", "GeForce RTX 4060"), ("RTX5070TiLaptop", "GeForce RTX 5070 Ti")]
)
def test_laptop_run_together_with_the_number_is_no_part_of_it(typed: str, name: str) -> None:
    assert gpus.find(typed).name == name
