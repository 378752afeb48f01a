"""A container without its GPU says which switch was forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from ambidex.device import container


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")


def test_a_plain_machine_is_no_container(tmp_path: Path) -> None:
    assert container.look(tmp_path, {}).kind == ""


@pytest.mark.parametrize(
    ("files", "environ", "kind"),
    [
        ([".dockerenv"], {}, "docker"),
        (["run/.containerenv"], {}, "podman"),
        ([".dockerenv"], {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ([], {"APPTAINER_CONTAINER": "/x.sif"}, "apptainer"),
    ],
)
def test_each_kind_is_known(tmp_path: Path, files: list[str], environ: dict[str, str], kind: str) -> None:
    touch(tmp_path, *files)
    assert container.look(tmp_path, environ).kind == kind


def test_a_container_is_known_by_its_cgroup_alone(tmp_path: Path) -> None:
    touch(tmp_path, "proc/1/cgroup")
    (tmp_path / "proc/1/cgroup").write_text("1:cpu:/docker/0123\n")
    assert container.look(tmp_path, {}).kind == "docker"


def test_no_device_nodes_means_started_without_a_gpu(tmp_path: Path) -> None:
    touch(tmp_path, ".dockerenv", "proc/driver/nvidia/version")
    found = container.look(tmp_path, {"NVIDIA_VISIBLE_DEVICES": "void"})
    assert found.gpu_passed is False
    assert "started without a GPU" in found.detail
    assert "'void'" in found.detail
    assert "the host has an NVIDIA driver" in found.detail


def test_nodes_without_libcuda_mean_that_the_capability_is_missing(tmp_path: Path) -> None:
    touch(tmp_path, ".dockerenv", "dev/nvidiactl")
    found = container.look(tmp_path, {"NVIDIA_DRIVER_CAPABILITIES": "utility"})
    assert found.gpu_passed is False
    assert "compute" in found.detail


def test_nodes_and_libcuda_mean_that_the_gpu_came_along(tmp_path: Path) -> None:
    touch(tmp_path, ".dockerenv", "dev/nvidiactl", "usr/lib/x86_64-linux-gnu/libcuda.so.1")
    assert container.look(tmp_path, {}).gpu_passed is True


def test_wsl_is_known_by_its_kernel_and_its_device(tmp_path: Path) -> None:
    touch(tmp_path, "proc/sys/kernel/osrelease", "dev/dxg", "usr/lib/wsl/lib/libcuda.so.1")
    (tmp_path / "proc/sys/kernel/osrelease").write_text("5.15.153.1-microsoft-standard-WSL2\n")
    found = container.look(tmp_path, {})
    assert (found.kind, found.gpu_passed) == ("wsl", True)
    (tmp_path / "dev/dxg").unlink()
    assert container.look(tmp_path, {}).gpu_passed is False


def test_a_compat_libcuda_on_the_library_path_is_found(tmp_path: Path) -> None:
    touch(tmp_path, "cuda/compat/libcuda.so.1", "cuda/lib/libcuda.so.1")
    compat = str(tmp_path / "cuda/compat")
    assert container.compat_shadow({"LD_LIBRARY_PATH": f"/usr/lib:{compat}"}) == compat
    assert container.compat_shadow({"LD_LIBRARY_PATH": str(tmp_path / "cuda/lib")}) == ""
