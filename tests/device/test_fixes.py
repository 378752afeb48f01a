"""What the doctor tells people to type exists, runs on their GPU, and cannot be a no-op."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest

from ambidex.device import builds, commands, rules, variants
from ambidex.device.diagnosis import Fix
from ambidex.device.fixes import driver_floor
from ambidex.device.machine import Arch, Build, Container, Driver, Extension, Gpu, Machine
from ambidex.device.version import at_least, numbers

GPUS = {
    name: Gpu(name, cc)
    for name, cc in [
        *[
            ("GB10", (12, 1)),
            ("RTX 5060", (12, 0)),
            ("Jetson Thor", (11, 0)),
            ("B300", (10, 3)),
            ("B200", (10, 0)),
        ],
        *[("H100", (9, 0)), ("RTX 4090", (8, 9)), ("Jetson Orin", (8, 7)), ("A40", (8, 6)), ("A100", (8, 0))],
        *[
            ("T4", (7, 5)),
            ("Jetson Xavier", (7, 2)),
            ("V100", (7, 0)),
            ("GTX 1080", (6, 1)),
            ("P100", (6, 0)),
        ],
        *[("GTX 980", (5, 2)), ("GTX 750", (5, 0)), ("K80", (3, 7)), ("GTX 780", (3, 5))],
    ]
}
DRIVERS = [None, "470.82.01", "525.60.13", "560.94", "570.124.06", "576.02", "580.95.05", "595.71.05"]
PYTHONS = ["3.8", "3.9", "3.10", "3.11", "3.13", "3.14", "3.15"]
PLATFORMS = [("linux", "x86_64"), ("linux", "aarch64"), ("windows", "x86_64")]
STABLE = ["cu132", "cu130", "cu128", "cu126"]


def situations() -> Iterator[Machine]:
    """Every GPU x driver x Python x platform, no torch installed: what is installed decides no fix."""
    for (os, machine), gpu, driver, python in itertools.product(PLATFORMS, GPUS.values(), DRIVERS, PYTHONS):
        yield Machine(os, machine, python, Build(missing="none"), (gpu,), Driver(driver))


@pytest.fixture(scope="module")
def answers() -> list[tuple[Machine, tuple[Fix, ...]]]:
    return [(machine, rules.fixes(machine)) for machine in situations()]


@cache
def serves(row: builds.Release, gpu: Gpu, os: str) -> tuple[bool, str]:
    """Whether its machine code runs on the GPU, and the driver's floor."""
    floor = driver_floor(Machine(os), row.build(), [gpu]) or "0"
    return rules.verdict(row.build(), gpu).kind in ("native", "same-major"), floor


def allowed(machine: Machine, tags: list[str] | None = None) -> list[builds.Release]:
    """A plain search of the table, independent of how `fixes` goes about it. None: every index."""
    gpu, driver = machine.gpus[0], machine.driver.version
    return [
        row
        for row in builds.releases(machine.os, machine.machine)
        if (tags is None or row.tag in tags)
        and row.allows(machine.python)
        and serves(row, gpu, machine.os)[0]
        if driver is None or numbers(driver) >= numbers(serves(row, gpu, machine.os)[1])
    ]


def check(fix: Fix, machine: Machine) -> None:
    """A fix names a row of the table for this platform, Python and driver, whose code runs on the GPU."""
    python, driver = fix.requires.get("python", machine.python), fix.requires.get("driver", "")
    torch = next(name for name in fix.installs if name.startswith("torch==")).removeprefix("torch==")
    row = builds.find(torch, machine.os, machine.machine)
    assert row, f"{torch} is in no table for {machine.os} {machine.machine}"
    assert row.version == torch
    assert row.allows(python)
    assert fix.build == row.build(python)
    for gpu in machine.gpus:
        after = Driver(driver or machine.driver.version)
        said = rules.verdict(row.build(), gpu, after, python, machine.os, machine.machine)
        assert said.kind in ("native", "same-major")
        floor = driver_floor(machine, row.build(), [gpu])
        assert floor is None or after.version is None or at_least(after.version, floor)
    typed = " ".join(fix.commands)
    assert f'"torch=={torch}"' in typed
    assert f"--index-url {row.index}" in typed


Answers = list[tuple[Machine, tuple[Fix, ...]]]


def torch_of(fix: Fix) -> tuple[int, ...]:
    return numbers(((fix.build and fix.build.version) or "").partition("+")[0])


def test_every_fix_over_the_whole_cross_product_exists_and_runs(answers: Answers) -> None:
    for machine, fixes in answers:
        for fix in fixes:
            check(fix, machine)
    assert sum(len(fixes) for _, fixes in answers) > 2000


def test_the_first_fix_is_the_newest_torch_that_is_allowed_and_then_the_lower_cuda(answers: Answers) -> None:
    for machine, fixes in answers:
        stable = allowed(machine, STABLE)
        if not stable:
            continue
        newest = max(numbers(row.torch) for row in stable)
        lowest = min(numbers(row.cuda) for row in stable if numbers(row.torch) == newest)
        first = fixes[0].build
        assert first
        assert (torch_of(fixes[0]), numbers(first.cuda or "")) == (newest, lowest)


def test_the_driver_comes_first_only_where_no_build_runs_on_the_present_one(answers: Answers) -> None:
    for machine, fixes in answers:
        if fixes and "python" not in fixes[0].requires:
            assert ("driver" in fixes[0].requires) == (not allowed(machine))


def test_a_second_fix_needs_a_newer_driver_and_gives_a_newer_torch(answers: Answers) -> None:
    for machine, fixes in answers:
        if machine.driver.version and len(fixes) > 1:
            assert fixes[1].requires["driver"]
            assert torch_of(fixes[1]) > torch_of(fixes[0])


def test_a_newer_driver_is_offered_wherever_it_would_allow_a_newer_torch(answers: Answers) -> None:
    for machine, fixes in answers:
        if not fixes or fixes[0].requires or not machine.driver.version:
            continue
        any_driver = allowed(replace(machine, driver=Driver()), STABLE)
        newer = [row for row in any_driver if numbers(row.torch) > torch_of(fixes[0])]
        assert (len(fixes) == 2) == bool(newer)


def test_an_index_that_ended_comes_only_where_no_stable_one_has_code(answers: Answers) -> None:
    for machine, fixes in answers:
        tag = ((fixes[0].build and fixes[0].build.version) or "").partition("+")[2] if fixes else ""
        if tag and tag not in STABLE:
            assert not allowed(machine, STABLE)
            assert tag != "cu129" or not allowed(machine, ["cu117", "cu118", "cu121", "cu124"])


def test_a_gpu_that_is_older_than_every_wheel_gets_no_fix() -> None:
    for name in ("GTX 780", "Jetson Xavier"):
        machine = Machine(
            "linux", "x86_64", "3.11", Build(missing="none"), (GPUS[name],), Driver("580.95.05")
        )
        assert rules.fixes(machine) == ()


def test_no_nightly_that_has_ended_has_code_that_no_release_has() -> None:
    """Why no nightly is ever offered."""
    for row in variants.rows().values():
        if row["state"] != "frozen" or row["channel"] != "nightly":
            continue
        released = {str(arch) for r in builds.releases("linux", "x86_64") for arch in r.archs}
        assert set(row["archs"]) <= released


@pytest.fixture
def old() -> Machine:
    """The issue's example."""
    return Machine(
        build=Build("2.5.1+cu121", "12.1"),
        gpus=(GPUS["RTX 5060"],),
        driver=Driver("576.02"),
        companions=("torchvision",),
    )


def test_pip_uninstalls_first_and_pins_the_local_version_with_companions_unpinned(old: Machine) -> None:
    assert rules.fixes(old)[0].commands == (
        "python -m pip uninstall -y torch torchvision",
        'python -m pip install "torch==2.11.0+cu128" torchvision'
        " --index-url https://download.pytorch.org/whl/cu128",
    )


@pytest.mark.parametrize(
    ("installer", "removes", "installs"),
    [
        (
            "uv",
            "uv pip uninstall --python '/my venv/python' torch torchvision",
            "uv pip install --python '/my venv/python' ",
        ),
        (
            "pip",
            "'/my venv/python' -m pip uninstall -y torch torchvision",
            "'/my venv/python' -m pip install ",
        ),
        (
            "conda",
            "conda remove --yes --prefix '/my venv' pytorch torchvision",
            "'/my venv/python' -m pip install ",
        ),
        ("poetry", "poetry remove torch torchvision", "poetry add --source pytorch-cu128 "),
    ],
)
def test_each_installer_gets_its_own_form_with_the_exact_executable(
    old: Machine, installer: str, removes: str, installs: str
) -> None:
    typed = rules.fixes(replace(old, installer=installer, executable="/my venv/python"))[0].commands
    assert removes in typed
    assert typed[-1].startswith(installs + '"torch==2.11.0+cu128" torchvision')
    assert "https://download.pytorch.org/whl/cu128" in " ".join(typed)
    assert typed.index(removes) < len(typed) - 1, "uninstalled before it is installed"


def test_on_windows_a_path_with_spaces_is_quoted_as_windows_does(old: Machine) -> None:
    machine = replace(old, os="windows", executable=r"C:\Program Files\Python311\python.exe")
    for typed in rules.fixes(machine)[0].commands:
        assert typed.startswith('& "C:\\Program Files\\Python311\\python.exe" -m pip'), (
            "PowerShell calls by &"
        )


def test_nothing_is_uninstalled_where_nothing_is_installed() -> None:
    machine = Machine(build=Build(missing="none"), gpus=(GPUS["RTX 4090"],), driver=Driver("580.95.05"))
    assert "uninstall" not in " ".join(rules.fixes(machine)[0].commands)


@pytest.mark.parametrize(
    ("kind", "word"),
    [("wsl", "in Windows, not inside WSL"), ("docker", "on the host"), ("", "Update the NVIDIA driver to")],
)
def test_the_driver_is_updated_where_it_lives(kind: str, word: str) -> None:
    machine = Machine(
        build=Build("2.15.0+cu130", "13.0"),
        gpus=(GPUS["RTX 5060"],),
        driver=Driver("576.02"),
        container=Container(kind, gpu_passed=True if kind else None),
    )
    found = rules.judge(machine)
    assert found.cause.id == "DRIVER_OLD"
    assert word in found.fixes[1].why


def test_another_python_gets_an_environment_of_its_own() -> None:
    for installer, word in [
        ("pip", "python3.14 -m venv"),
        ("uv", "uv venv --python 3.14"),
        ("conda", "conda create"),
    ]:
        machine = Machine(
            python="3.15", gpus=(GPUS["GTX 1080"],), driver=Driver("580.95.05"), installer=installer
        )
        fix = rules.fixes(machine)[0]
        assert fix.requires == {"python": "3.14"}
        assert fix.commands[0].startswith(word)


def test_variables_are_unset_as_the_shell_does() -> None:
    assert commands.unset(["CUDA_VISIBLE_DEVICES"], "linux") == "unset CUDA_VISIBLE_DEVICES"
    assert commands.unset(["CUDA_VISIBLE_DEVICES"], "windows") == "Remove-Item Env:CUDA_VISIBLE_DEVICES"


def test_a_gpu_is_shown_by_uuid_and_else_by_pci_order() -> None:
    with_uuid, without = Gpu("A", (8, 6), 1, uuid="GPU-1f"), Gpu("B", (8, 6), 1)
    assert commands.show_only([with_uuid], "linux") == "export CUDA_VISIBLE_DEVICES=GPU-1f"
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in commands.show_only([without], "linux")


def test_where_no_build_serves_all_gpus_the_most_are_served() -> None:
    pascal = (replace(GPUS["GTX 1080"], index=0), replace(GPUS["GTX 1080"], index=1))
    machine = Machine(gpus=(*pascal, replace(GPUS["RTX 5060"], index=2)), driver=Driver("580.95.05"))
    fix = rules.fixes(machine)[0]
    assert fix.installs == ("torch==2.14.1+cu126",)
    assert "GPU 0 and 1 GTX 1080" in fix.why
    assert "GPU 2 RTX 5060" in fix.why


def test_a_build_that_is_no_better_than_the_present_one_is_not_offered() -> None:
    gpus = (GPUS["GTX 1080"], replace(GPUS["RTX 5060"], index=1, uuid="GPU-1f"))
    machine = Machine(build=Build("2.15.0+cu130", "13.0"), gpus=gpus, driver=Driver("580.95.05"))
    (fix,) = rules.fixes(machine)
    assert fix.commands == ("export CUDA_VISIBLE_DEVICES=GPU-1f",)


def test_a_newer_torch_is_not_offered_beside_the_driver_that_the_present_one_needs_anyway() -> None:
    machine = Machine(build=Build("2.15.0+cu132", "13.2"), gpus=(GPUS["RTX 5060"],), driver=Driver("576.02"))
    offered = [(fix.build.version if fix.build else None, fix.requires) for fix in rules.judge(machine).fixes]
    assert offered == [("2.11.0+cu128", {}), ("2.15.0+cu132", {"driver": "580"})]


@pytest.mark.parametrize(
    ("os", "executable", "named"),
    [
        ("linux", "envs/gpu/bin/python", " --prefix envs/gpu pytorch"),
        ("windows", r"C:\envs\my gpu\python.exe", r' --prefix "C:\envs\my gpu" pytorch'),
        ("windows", r"C:\envs\gpu\Scripts\python.exe", r" --prefix C:\envs\gpu pytorch"),
        ("linux", "python", "--yes pytorch"),
    ],
)
def test_conda_removes_torch_from_the_environment_that_was_judged_and_no_other(
    old: Machine, os: str, executable: str, named: str
) -> None:
    machine = replace(old, os=os, executable=executable, installer="conda")
    assert named in rules.fixes(machine)[0].commands[0]


def lacking(name: str, **more: object) -> tuple[Machine, list[Extension]]:
    """torch has code for the RTX 5060, and the package beside it has not."""
    machine = Machine(
        build=Build("2.11.0+cu128", "12.8", archs=(Arch("sm", 9, 0), Arch("sm", 12, 0)), source="scanned"),
        gpus=(GPUS["RTX 5060"],),
        driver=Driver("576.02"),
        companions=("torchvision", "torchaudio"),
    )
    return replace(machine, **more), [Extension(name, (Arch("sm", 8, 0), Arch("sm", 9, 0)))]  # type: ignore[arg-type]


INSTALLERS = ["pip", "uv", "poetry", "conda", "target"]


@pytest.mark.parametrize("installer", INSTALLERS)
@pytest.mark.parametrize("name", ["torchvision", "torchaudio"])
def test_a_companion_that_lacks_the_code_comes_in_one_command_with_its_torch_from_torchs_index(
    name: str, installer: str
) -> None:
    machine, extensions = lacking(name, installer=installer)
    (fix,) = rules.judge(machine, extensions=extensions).fixes
    if installer != "poetry":  # which names the index in a command of its own
        check(fix, machine)
    assert '"torch==2.11.0+cu128" torchvision torchaudio' in fix.commands[-1]
    assert "https://download.pytorch.org/whl/cu128" in " ".join(fix.commands)
    assert "--no-deps" not in " ".join(fix.commands)


@pytest.mark.parametrize("version", ["2.11.0a0+git1234", "2.16.0+cu140", "2.11.0"])
def test_no_companion_is_taken_from_an_index_that_the_present_torch_is_not_from(version: str) -> None:
    machine, extensions = lacking("torchvision")
    machine = replace(machine, build=replace(machine.build, version=version))
    (fix,) = rules.judge(machine, extensions=extensions).fixes
    assert fix.commands == ()
    assert f"together with torch {version}" in fix.why


@pytest.mark.parametrize("os", ["linux", "windows"])
@pytest.mark.parametrize("installer", INSTALLERS)
def test_what_is_built_from_source_sees_the_torch_that_it_is_built_for(installer: str, os: str) -> None:
    machine, extensions = lacking("flash_attn", installer=installer, executable="envs", os=os)
    tools, typed = rules.judge(machine, extensions=extensions).fixes[0].commands
    assert "--no-build-isolation" in typed
    assert "--only-binary" not in typed + tools, "no package of sources satisfies it"
    assert "wheel packaging ninja psutil" in tools
    if installer == "target":
        seen = {
            "linux": 'PYTHONPATH="$PWD"/envs python3.11 ',
            "windows": r'$env:PYTHONPATH = "$PWD\envs"; py -3.11 ',
        }
        assert typed.startswith(seen[os]), "a build runs in another folder: the path is whole"


def test_a_package_is_told_which_gpus_to_build_for_by_the_variable_that_it_reads() -> None:
    for name, said in [
        ("flash_attn", 'FLASH_ATTN_CUDA_ARCHS="120"'),
        ("gsplat", 'TORCH_CUDA_ARCH_LIST="12.0"'),
    ]:
        machine, extensions = lacking(name)
        assert said in rules.judge(machine, extensions=extensions).fixes[0].why
    assert 'ARCHS="80;120"' in commands.build_settings("flash-attn", [(8, 9), (12, 1), (8, 6)])
    assert commands.build_settings("flash_attn", [(7, 5)]) == "", "its source makes no code for it"


def test_a_gpu_whose_ptx_the_driver_cannot_compile_is_not_said_to_be_usable() -> None:
    build = Build("2.8.0a0+git", "12.9", archs=(Arch("sm", 8, 6), Arch("compute", 9, 0)), source="scanned")
    gpus = (replace(GPUS["RTX 5060"], uuid="GPU-50"), replace(GPUS["RTX 4090"], index=1, uuid="GPU-40"))
    found = rules.judge(Machine(build=build, gpus=gpus, driver=Driver("572.16")))
    assert found.cause.id == "ARCH_NONE"
    assert found.cause.text.endswith("GPU 1 RTX 4090 can be used: export CUDA_VISIBLE_DEVICES=GPU-40")


@pytest.mark.parametrize("kind", ["", "wsl"])
@pytest.mark.parametrize("cuda", ["13.0", "13.1", "13.2"])
def test_the_driver_that_keeps_the_present_torch_also_compiles_its_ptx(cuda: str, kind: str) -> None:
    build = Build("2.15.0a0+git", cuda, archs=(Arch("compute", 9, 0),), source="scanned")
    container = Container(kind, gpu_passed=True if kind else None)
    machine = Machine(build=build, gpus=(GPUS["RTX 5060"],), driver=Driver("575.51.03"), container=container)
    found = rules.judge(machine)
    assert found.cause.id == "DRIVER_OLD"
    needed = next(fix.requires["driver"] for fix in found.fixes if fix.build == build)
    assert rules.judge(replace(machine, driver=Driver(needed))).exit_code == 0


def test_no_driver_is_promised_that_compiles_ptx_of_a_cuda_newer_than_the_table() -> None:
    build = Build("2.17.0a0+git", "13.9", archs=(Arch("compute", 9, 0),), source="scanned")
    machine = Machine(build=build, gpus=(GPUS["RTX 5060"],), driver=Driver("575.51.03"))
    assert all(fix.build != build for fix in rules.judge(machine).fixes)


@pytest.mark.parametrize("archs", [(Arch("compute", 9, 0),), (Arch("sm", 8, 0), Arch("compute", 9, 0))])
def test_the_cause_names_the_driver_that_the_fix_asks_for(archs: tuple[Arch, ...]) -> None:
    build = Build("2.8.0a0+git", "12.9", archs=archs, source="scanned")
    found = rules.judge(Machine(build=build, gpus=(GPUS["RTX 5060"],), driver=Driver("560.28.03")))
    assert found.cause.id == "DRIVER_OLD"
    needed = next(fix.requires["driver"] for fix in found.fixes if fix.build == build)
    assert f"needs {needed} or newer" in found.cause.text


@pytest.mark.parametrize(
    ("executable", "typed"),
    [
        (r"C:\Python311\python.exe", r"C:\Python311\python.exe -m pip"),
        (r"C:\Users\O'Brien\python.exe", '& "C:\\Users\\O\'Brien\\python.exe" -m pip'),
        (r"C:\a$b\python.exe", r"& 'C:\a$b\python.exe' -m pip"),
        (r"C:\a (x86)\python.exe", '& "C:\\a (x86)\\python.exe" -m pip'),
    ],
)
@pytest.mark.parametrize("installer", ["pip", "conda", "bare", "system"])
def test_on_windows_every_program_is_started_as_powershell_starts_one(
    old: Machine, executable: str, typed: str, installer: str
) -> None:
    machine = replace(old, os="windows", executable=executable, installer=installer)
    commands_of = rules.fixes(machine)[0].commands
    program = typed.removesuffix(" -m pip")
    assert any(line.startswith(f"{program} -m ") for line in commands_of)
    assert not any(line.startswith(('"', "'")) for line in commands_of)


def test_uv_is_given_a_quoted_path_without_a_call(old: Machine) -> None:
    machine = replace(old, os="windows", executable=r"C:\a b\python.exe", installer="uv")
    assert (
        rules.fixes(machine)[0].commands[0].startswith(r'uv pip uninstall --python "C:\a b\python.exe" torch')
    )


def test_what_a_build_is_told_is_typed_as_that_system_types_it() -> None:
    assert (
        commands.build_settings("gsplat", [(7, 5), (12, 0)], "windows")
        == '$env:TORCH_CUDA_ARCH_LIST = "7.5;12.0"'
    )
    assert (
        commands.build_settings("gsplat", [(7, 5), (12, 0)], "linux")
        == 'export TORCH_CUDA_ARCH_LIST="7.5;12.0"'
    )
    machine, extensions = lacking("flash_attn", os="windows")
    why = rules.judge(machine, extensions=extensions).fixes[0].why
    assert '$env:FLASH_ATTENTION_FORCE_BUILD = "TRUE"; $env:FLASH_ATTN_CUDA_ARCHS = "120"' in why


def test_a_python_that_the_system_keeps_to_itself_is_left_alone(old: Machine) -> None:
    machine = replace(old, installer="system", executable="/usr/bin/python3")
    fix = rules.fixes(machine)[0]
    made, typed = fix.commands
    assert made == "/usr/bin/python3 -m venv .venv-torch"
    assert typed.startswith(".venv-torch/bin/python -m pip install")
    assert "PEP 668" in fix.why
    check(fix, machine)


def test_a_virtual_environment_without_pip_gets_it_first(old: Machine) -> None:
    first, second, third = rules.fixes(replace(old, installer="bare"))[0].commands
    assert first == "python -m ensurepip --upgrade"
    assert "uninstall" in second
    assert "install" in third


def test_an_apptainer_container_is_started_with_its_own_switch() -> None:
    container = Container("apptainer", gpu_passed=False, detail="no /dev/nvidiactl")
    build = Build("2.11.0+cu128", "12.8", archs=(Arch("sm", 9, 0),), source="scanned")
    found = rules.judge(Machine(build=build, container=container))
    assert found.cause.id == "CONTAINER_NO_GPU"
    assert found.fixes[0].commands == ("apptainer exec --nv ...",)


NO_TORCH = Machine(build=Build(missing="none"))


@pytest.mark.parametrize(
    ("os", "machine", "python", "typed"),
    [
        ("macos", "x86_64", "3.11", 'python -m pip install "torch==2.2.2"'),
        (
            "macos",
            "x86_64",
            "3.13",
            'python3.12 -m venv .venv-torch && .venv-torch/bin/python -m pip install "torch==2.2.2"',
        ),
        ("macos", "aarch64", "3.13", 'python -m pip install "torch==2.15.0"'),
        ("linux", "aarch64", "3.10", 'python -m pip install "torch==2.14.1"'),
        ("linux", "riscv64", "3.11", ""),
        ("windows", "aarch64", "3.11", ""),
    ],
)
def test_for_the_cpu_no_wheel_is_named_that_pypi_does_not_have(
    os: str, machine: str, python: str, typed: str
) -> None:
    (fix,) = rules.judge(replace(NO_TORCH, os=os, machine=machine, python=python)).fixes
    assert " && ".join(fix.commands) == typed
    assert ("PyTorch's own index may have one" in fix.why) is (not typed)


@pytest.mark.parametrize("python", ["3.7", "3.16"])
def test_a_python_without_any_torch_is_told_which_one_to_take_even_for_the_cpu(python: str) -> None:
    (fix,) = rules.judge(replace(NO_TORCH, python=python)).fixes
    assert fix.requires == {"python": "3.14"}
    assert fix.commands[0] == "python3.14 -m venv .venv-torch"
    assert "+cpu" in fix.commands[1]
