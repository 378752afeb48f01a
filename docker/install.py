"""Everything that the Dockerfiles install, step by step, so that both of them can be short and alike.

Usage: install.py system | torch | requirements | tests | project

    system         a compiler for torch.compile, the user, the folders that the user may write  (the base's Python)
    torch          the torch of /pin/row.json, and what it brings                               (the image's Python)
    requirements   the pins of /pin/requirements.txt
    tests          the pins of /pin/test.txt, into a folder of their own
    project        Ambidex itself, from /src

/wheels holds whatever lies in docker/wheels on the host. What is found there is used; if all of it is found there, no
index is asked. These build arguments arrive as environment variables, and empty means the usual place:

    TORCH_INDEX      your mirror of the row's index     PYTHON_INDEX   your mirror of the Python package index
    APT_MIRROR       your mirror of Debian              COMPILER       packages for torch.compile; empty: none

A company's certificate comes as the build secret `ca`, a PEM file; it is trusted besides the usual ones.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PIN = Path("/pin")
WHEELS = Path("/wheels")
SECRET = Path("/run/secrets/ca")
TEST_TOOLS = Path("/opt/test-tools")
SOURCE = Path("/src")
TRAINER_UID = 1000  # only a default: any other user id works as well, in group 0
WRITABLE = ("/home/trainer", "/cache", "/data", "/runs")

# `__version__` of a wheel is the second part of its name: torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl
WHEEL = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)(-\d[^-]*)?-(?P<tags>[^-]+-[^-]+-[^-]+)\.whl")


# -- the system ---------------------------------------------------------------------------------------------------


def install_system() -> None:
    compiler = os.environ.get("COMPILER", "").split()
    if compiler and not has_compiler():
        install_packages(compiler)
    user = ["--uid", str(TRAINER_UID), "--gid", "0", "--home-dir", WRITABLE[0], "--no-create-home", "trainer"]
    subprocess.run(["useradd", *user], check=True)
    # Group 0 may do what the user may: a user id that nobody knows is in group 0, as on OpenShift.
    for folder in WRITABLE:
        Path(folder).mkdir(parents=True, exist_ok=True)
        os.chown(folder, TRAINER_UID, 0)
        Path(folder).chmod(0o775)


def has_compiler() -> bool:
    """torch.compile writes C++ and compiles it against Python's own header."""
    return bool(shutil.which("g++")) and Path(sysconfig.get_path("include"), "Python.h").exists()


def install_packages(packages: list[str]) -> None:
    mirror = os.environ.get("APT_MIRROR", "")
    if mirror:
        for listing in [*Path("/etc/apt").glob("sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]:
            text = listing.read_text("utf-8")
            text = re.sub(r"https?://deb\.debian\.org/debian(?=[\s/]|$)", mirror.rstrip("/"), text)
            listing.write_text(text, "utf-8")
    # A Python that Debian built has its header in a package; any other brings it.
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        packages = [*packages, "python3-dev"]
    trust = [f"-oAcquire::https::CAInfo={SECRET}"] if has_secret() else []
    try:
        subprocess.run(["apt-get", *trust, "update"], check=True)
        words = ["--yes", "--no-install-recommends", *packages]
        subprocess.run(["apt-get", *trust, "install", *words], check=True)
    except (OSError, subprocess.CalledProcessError) as failure:
        raise SystemExit(
            f"error: the base image has no C++ compiler and apt could not install {' '.join(packages)} ({failure}); "
            "name a mirror (APT_MIRROR=http://... docker compose build SERVICE), take a base image that has g++ and Python.h "
            "(BASE_IMAGE=...), or do without torch.compile (COMPILER= docker compose build SERVICE)"
        ) from None
    for folder in ("/var/lib/apt/lists", "/var/cache/apt/archives"):
        for leftover in Path(folder).iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


# -- wheels and indexes -------------------------------------------------------------------------------------------


def install_torch() -> None:
    row = json.loads((PIN / "row.json").read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        # The folder may hold torch for several variants, and to pip 2.13.0+cpu is a fine 2.13.0. So torch is picked
        # here, by its full version, and pip sees all the other wheels but no torch.
        others = Path(folder)
        for wheel in wheels_at_hand():
            if not is_torch(wheel):
                (others / wheel.name).symlink_to(wheel)
        own = next((wheel for wheel in wheels_at_hand() if fits_row(wheel, row) and fits_here(wheel)), None)
        index = os.environ.get("TORCH_INDEX") or row["index"]
        what = [str(own)] if own else torch_requirement(row, mirrored=index != row["index"])
        install(what, find=others, index=index, constraints=True)


def torch_requirement(row: dict, *, mirrored: bool) -> list[str]:
    """What pip is asked for. A row without a version floats: whatever its index has newest.

    A mirror may be of the default package index, whose wheels bear no `+cu130` in their names; that the right one
    came is for the gate in record.py to say.
    """
    if "torch" not in row:
        return ["--pre", "torch"]
    return [f"torch=={row['torch']}" if mirrored else f"torch=={row['torch']}+{row['local']}"]


def install_requirements() -> None:
    what = ["--requirement", str(PIN / "requirements.txt")]
    install(what, find=WHEELS, index=os.environ.get("PYTHON_INDEX", ""))


def install_tests() -> None:
    what = ["--requirement", str(PIN / "test.txt"), "--no-deps", "--target", str(TEST_TOOLS)]
    install(what, find=WHEELS, index=os.environ.get("PYTHON_INDEX", ""))


def install_project() -> None:
    # setuptools is one of the pins, so neither an index nor an environment of its own is needed to build.
    run_pip(["--no-index", "--no-deps", "--no-build-isolation", str(SOURCE)], quiet=True)
    # Every Python of this image begins with it: what one user id writes into /cache, another of group 0 may change. A .pth
    # file and no sitecustomize.py, because Debian's Python has one of its own, which comes first.
    begins = Path(sysconfig.get_path("purelib"), "ambidex-group-may-write.pth")
    begins.write_text("import os; os.umask(0o002)\n", "utf-8")


def install(what: list[str], *, find: Path, index: str, constraints: bool = False) -> None:
    """Install from the folder alone if it holds everything, else from the folder and the index."""
    limits = ["--constraint", str(PIN / "requirements.txt")] if constraints else []
    local = ["--find-links", str(find)]
    if any(find.glob("*.whl")) and run_pip(["--no-index", *local, *limits, *what], quiet=True, check=False):
        print("docker/wheels held all of it; no index was asked", flush=True)
        return
    asked = ["--index-url", index] if index else []
    if not run_pip([*asked, *local, *limits, *what], check=False):
        raise SystemExit(sentence_for_failure(what, index))


def run_pip(arguments: list[str], *, quiet: bool = False, check: bool = True) -> bool:
    """One `pip install` in the image's environment. Quiet keeps its output back unless it has to be read."""
    command = [sys.executable, "-m", "pip", "install"]
    command += ["--disable-pip-version-check", "--root-user-action=ignore"]
    done = subprocess.run(
        [*command, *arguments],
        env=trusting_environment(),
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
        text=True,
        check=False,
    )
    if check and done.returncode:
        raise SystemExit(f"{done.stdout or ''}error: pip could not install {arguments[-1]}")
    return done.returncode == 0


def sentence_for_failure(what: list[str], index: str) -> str:
    wanted = " ".join(word for word in what if not word.startswith("--"))
    misfits = [wheel.name for wheel in wheels_at_hand() if not fits_here(wheel)]
    row = json.loads((PIN / "row.json").read_text("utf-8"))
    found = f"docker/wheels does not hold it and {index or 'the default index'} did not give it (pip's reason stands above)"
    if misfits:
        found += f"; {', '.join(misfits[:3])} there is for another Python or platform than {platform_words()}"
    return (
        f"error: {wanted} could not be installed: {found}; fill docker/wheels where there is a network "
        f"(python3 docker/fetch.py {row['name']}), or name a mirror (TORCH_INDEX, PYTHON_INDEX: see docs/containers.md)"
    )


def wheels_at_hand() -> list[Path]:
    """The wheels on the host, in reverse order of their names, so that of two that fit the newer comes first."""
    return sorted(WHEELS.glob("*.whl"), reverse=True)


def is_torch(wheel: Path) -> bool:
    named = WHEEL.fullmatch(wheel.name)
    return bool(named) and named["name"] == "torch"


def fits_row(wheel: Path, row: dict) -> bool:
    """Whether this is the row's torch: its version, with or without its local tag; where it floats, its channel's."""
    if not is_torch(wheel):
        return False
    version, _, local = WHEEL.fullmatch(wheel.name)["version"].partition("+")
    if "torch" in row:
        return version == row["torch"] and local in {row["local"], ""}
    return ".dev" in version and local == row["local"]


def fits_here(wheel: Path) -> bool:
    """Whether pip in this Python would take the wheel: what its name says against what the interpreter accepts."""
    from pip._vendor.packaging.tags import parse_tag, sys_tags

    named = WHEEL.fullmatch(wheel.name)
    return bool(named) and not parse_tag(named["tags"]).isdisjoint(sys_tags())


def platform_words() -> str:
    return f"Python {sys.version_info.major}.{sys.version_info.minor} on {sysconfig.get_platform()}"


# -- a company's certificate --------------------------------------------------------------------------------------


def has_secret() -> bool:
    return SECRET.exists() and SECRET.stat().st_size > 0


def trusting_environment() -> dict[str, str]:
    """The environment for pip, which trusts the certificates it came with and, where one is given, the company's."""
    environment = dict(os.environ)
    if has_secret():
        from pip._vendor import certifi

        # One file of both: PIP_CERT replaces what pip trusts, and the public indexes must stay trusted. It lies in
        # /tmp of one build step, and holds nothing secret: certificates are public.
        both = Path(tempfile.gettempdir()) / "ca-bundle.pem"
        both.write_text(Path(certifi.where()).read_text("utf-8") + "\n" + SECRET.read_text("utf-8"), "utf-8")
        environment["PIP_CERT"] = str(both)
    return environment


STEPS = {
    "system": install_system,
    "torch": install_torch,
    "requirements": install_requirements,
    "tests": install_tests,
    "project": install_project,
}

if __name__ == "__main__":
    STEPS[sys.argv[1]]()
