"""Containers and WSL: what kind this is, and whether the GPU came along.

Inside a container the driver's library and device nodes are put there at its start or not at all; what is
missing tells which switch was forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ambidex.device.machine import Container

_NODES = ("dev/nvidiactl", "dev/nvidia0", "dev/dxg", "dev/nvhost-gpu", "dev/nvgpu")
_LIBRARY_FOLDERS = (
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib/wsl/lib",
    "usr/lib64",
    "usr/lib",
    "lib/x86_64-linux-gnu",
    "usr/local/nvidia/lib64",
    "usr/local/nvidia/lib",
    "run/opengl-driver/lib",
    "usr/lib/aarch64-linux-gnu/nvidia",
    "usr/lib/aarch64-linux-gnu/tegra",
)


def look(root: Path = Path("/"), environ: Mapping[str, str] | None = None) -> Container:
    """Which container, if any, and whether it was given a GPU."""
    environ = environ or {}
    wsl = is_wsl(root)
    kind = _kind(root, environ)
    if not kind and not wsl:
        return Container()
    nodes = [name for name in _NODES if (root / name).exists()]
    library = finds_libcuda(root, environ)
    detail = _detail(root, environ, bool(nodes), library, wsl and not kind)
    return Container(kind or "wsl", bool(nodes) and library, detail)


def is_wsl(root: Path = Path("/")) -> bool:
    return "microsoft" in (_text(root / "proc/sys/kernel/osrelease") + _text(root / "proc/version")).lower()


def has_nvidia_nodes(root: Path = Path("/")) -> bool:
    """Whether the kernel offers an NVIDIA device here, under Linux's, WSL's or Jetson's name."""
    return any((root / name).exists() for name in _NODES)


def finds_libcuda(root: Path, environ: Mapping[str, str]) -> bool:
    """Whether the driver's library lies where the loader looks. No library is loaded."""
    folders = [root / name for name in _LIBRARY_FOLDERS]
    folders += [Path(entry) for entry in environ.get("LD_LIBRARY_PATH", "").split(":") if entry]
    if any((folder / "libcuda.so.1").exists() for folder in folders):
        return True
    try:
        return b"libcuda.so.1" in (root / "etc/ld.so.cache").read_bytes()
    except OSError:
        return False


def compat_shadow(environ: Mapping[str, str]) -> str:
    """The folder on LD_LIBRARY_PATH whose `compat` libcuda shadows the host's (error 804 on a GeForce), or
    ''.
    """
    for entry in environ.get("LD_LIBRARY_PATH", "").split(":"):
        if "compat" in Path(entry).parts and any(Path(entry).glob("libcuda.so*")):
            return entry
    return ""


def _kind(root: Path, environ: Mapping[str, str]) -> str:
    if "KUBERNETES_SERVICE_HOST" in environ or (root / "var/run/secrets/kubernetes.io").exists():
        return "kubernetes"
    if (root / "run/.containerenv").exists() or environ.get("container") == "podman":
        return "podman"
    if (root / ".dockerenv").exists():
        return "docker"
    if (
        "APPTAINER_CONTAINER" in environ
        or "SINGULARITY_CONTAINER" in environ
        or (root / ".singularity.d").exists()
    ):
        return "apptainer"
    groups = _text(root / "proc/1/cgroup") + _text(root / "proc/self/cgroup")
    for mark, kind in (
        ("kubepods", "kubernetes"),
        ("libpod", "podman"),
        ("/docker", "docker"),
        ("containerd", "docker"),
    ):
        if mark in groups:
            return kind
    return ""


def _detail(root: Path, environ: Mapping[str, str], nodes: bool, library: bool, wsl: bool) -> str:
    if wsl:
        if nodes and library:
            return "WSL2 with the driver of Windows (install none inside)"
        if not nodes:
            return "WSL without /dev/dxg: WSL 1, or a Windows driver without WSL support"
        return "/dev/dxg is there and libcuda is not: /usr/lib/wsl/lib is hidden or overwritten"
    if nodes and library:
        return "the GPU was passed in"
    if nodes:
        wanted = environ.get("NVIDIA_DRIVER_CAPABILITIES", "")
        said = f" (it is {wanted!r})" if wanted else ""
        return (
            f"device nodes are here and libcuda.so.1 is not: NVIDIA_DRIVER_CAPABILITIES lacks compute{said}"
        )
    asked = environ.get("NVIDIA_VISIBLE_DEVICES")
    said = "" if asked is None else f"; NVIDIA_VISIBLE_DEVICES is {asked!r}"
    host = "; the host has an NVIDIA driver" if (root / "proc/driver/nvidia/version").exists() else ""
    return f"no /dev/nvidiactl and no /dev/dxg: started without a GPU{said}{host}"


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(1 << 20).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""
