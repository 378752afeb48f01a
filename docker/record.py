"""What is really inside an image, in one JSON file, and the gate that stops a build which is not what it claims.

Usage: record.py torch       ask the installed torch and the package list; compare with the row; write the record
       record.py project     add the project to the record                    (needs REVISION, may be empty)
       record.py check       ask again, and compare with the record           (for tests: nothing is written)

The record is computed from the image and never from what the build was asked for. `ambidex doctor` reads it at start.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
from datetime import UTC, datetime
from pathlib import Path

RECORD = Path("/opt/ambidex/record.json")
PIN = Path("/pin")
SCHEMA = 1


# -- what is inside -----------------------------------------------------------------------------------------------


def look_at_torch() -> dict:
    """Version, commit, CUDA and kernels of the installed torch. Works without a GPU."""
    import torch

    # torch.cuda.get_arch_list() is empty without a GPU; this is what it would read.
    flags = getattr(torch._C, "_cuda_getArchFlags", lambda: None)()
    return {
        "version": str(torch.__version__),
        "git": torch.version.git_version,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "archs": flags.split() if flags else [],
        "config_sha256": hashlib.sha256(torch.__config__.show().encode()).hexdigest(),
        "library_sha256": library_hash(),
    }


def library_hash() -> str | None:
    """The hash of libtorch_cpu.so as the wheel's own list states it: it names a build even when its wheel is gone."""
    for file in importlib.metadata.files("torch") or []:
        if file.name == "libtorch_cpu.so" and file.hash:
            return f"{file.hash.mode}={file.hash.value}"
    return None


def look_at_packages() -> dict[str, dict]:
    """Every installed package: its version, the hash of its file list, and of its wheel where pip noted one."""
    packages = {}
    # Only what lies in the image's own environment: the test image's tools are no part of what trains.
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    for package in importlib.metadata.distributions(path=places):
        facts = {"version": package.version}
        if files := package.read_text("RECORD"):
            facts["record_sha256"] = hashlib.sha256(files.encode()).hexdigest()
        if origin := package.read_text("direct_url.json"):
            digest = json.loads(origin).get("archive_info", {}).get("hashes", {}).get("sha256")
            facts |= {"wheel_sha256": digest} if digest else {}
        packages[normal(package.metadata["Name"])] = facts
    return dict(sorted(packages.items()))


def look() -> dict:
    packages = look_at_packages()
    packages.pop("ambidex", None)  # changes with every edit of the source; it has a place of its own
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        "torch": look_at_torch(),
        "packages": packages,
    }


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# -- the gate -----------------------------------------------------------------------------------------------------


def differences(row: dict, found: dict, pins: dict[str, str]) -> list[str]:
    """Everything in which the image is not what its row and its pins say, in words. Empty: it is."""
    torch, packages = found["torch"], found["packages"]
    version, _, local = torch["version"].partition("+")
    wrong = []
    if "torch" in row and version != row["torch"]:
        wrong.append(f"torch is {version}, the row says {row['torch']}")
    if row["channel"] == "nightly" and nightly_date(version) is None:
        wrong.append(f"torch is {version}, the row says a nightly, which has a date: 2.7.0.dev20250310, say")
    if local != row["local"]:
        wrong.append(f"torch is the {local or 'untagged'} build, the row says {row['local']}")
    if torch["cuda"] != row.get("cuda"):
        wrong.append(
            f"torch was built for CUDA {torch['cuda'] or 'none'}, the row says {row.get('cuda', 'none')}"
        )
    if "archs" in row and sorted(torch["archs"]) != sorted(row["archs"]) and platform.machine() == "x86_64":
        wrong.append(
            f"torch has code for {' '.join(torch['archs']) or 'no GPU'}, the row says {' '.join(row['archs'])}"
        )
    nvidia = [name for name in packages if name.startswith(("nvidia-", "cuda-"))]
    if nvidia and "cuda" not in row:
        wrong.append(f"a CPU image holds {', '.join(nvidia[:3])} ({len(nvidia)} packages of NVIDIA's)")
    for name, wanted in pins.items():
        got = packages.get(name, {}).get("version", "missing")
        if got != wanted:
            wrong.append(f"{name} is {got}, the pin says {wanted}")
    return wrong


def nightly_date(version: str) -> str | None:
    """`2.7.0.dev20250310` was built on 2025-03-10."""
    found = re.search(r"\.dev(\d{4})(\d{2})(\d{2})", version)
    return "-".join(found.groups()) if found else None


def read_pins(path: Path) -> dict[str, str]:
    lines = [line.split("==") for line in path.read_text("utf-8").splitlines() if line]
    return {normal(name): version for name, version in lines}


# -- the steps ----------------------------------------------------------------------------------------------------


def record_torch() -> None:
    row = json.loads((PIN / "row.json").read_text("utf-8"))
    found = look()
    wrong = differences(row, found, read_pins(PIN / "requirements.txt"))
    # Two packages that do not go together would fail at some step of some training: better here.
    conflicts = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    wrong += conflicts.stdout.splitlines() if conflicts.returncode else []
    if wrong:
        raise SystemExit(
            f"error: the image is not the variant {row['name']!r}: {'; '.join(wrong)}; "
            f"put the right wheels into docker/wheels (python3 docker/fetch.py {row['name']}), "
            "or change the row in src/ambidex/device/variants.toml if the row is what is wrong"
        )
    nightly = nightly_date(found["torch"]["version"])
    record = {
        "schema": SCHEMA,
        "variant": row["name"],
        "row": row,
        "built": datetime.now(UTC).isoformat(timespec="seconds"),
        **({"nightly_date": nightly} if nightly else {}),
        "requirements_sha256": hashlib.sha256((PIN / "requirements.txt").read_bytes()).hexdigest(),
        **found,
    }
    write(record)
    archs = " ".join(found["torch"]["archs"]) or "CPU"
    print(f"this image is {row['name']}: torch {found['torch']['version']}, {archs}")


def record_project() -> None:
    record = json.loads(RECORD.read_text("utf-8"))
    package = importlib.metadata.distribution("ambidex")
    record["project"] = {
        "version": package.version,
        "revision": os.environ.get("REVISION") or None,  # the commit; None where the build was not told
        "record_sha256": hashlib.sha256((package.read_text("RECORD") or "").encode()).hexdigest(),
    }
    write(record)


def check() -> None:
    record, found = json.loads(RECORD.read_text("utf-8")), look()
    wrong = [key for key, value in found.items() if record[key] != value]
    if wrong:
        raise SystemExit(
            f"error: the record no longer says what is inside: {', '.join(wrong)}; build the image again"
        )
    print("the record says what is inside")


def write(record: dict) -> None:
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", "utf-8")


STEPS = {"torch": record_torch, "project": record_project, "check": check}

if __name__ == "__main__":
    STEPS[sys.argv[1]]()
