"""A nightly that is pinned, and what the next one changes.

    python tools/nightly.py pin VARIANT          fetch the newest wheel, hash it, look inside, write pins/VARIANT.json
    python tools/nightly.py leg FOLDER           in an environment: record what is installed, and train a traced run
    python tools/nightly.py changes OLD NEW      two such folders: what changed inside, and in the numbers; exit 1 if these did

A nightly's name is no identity: the same name has been uploaded with other bytes, and its index publishes no hashes. So
a pin is the wheel's hash and torch's commit, and nothing writes one but `pin`, after the wheel was here. A `pin` that
fails leaves the old pin as it was.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "docker"), str(ROOT / "tools")]

import record  # noqa: E402
import torch_first  # noqa: E402

# Enough for every stage of `compare` to have something to judge; the same on every build, and a minute on one core.
TRAINING = ["--device", "cpu", "--precision", "fp32", "--threads", "1", "--seed", "1", "--layers", "2", "--width", "64", "--heads", "2", "--kv-heads", "1", "--feed-forward", "128", "--context", "64", "--batch-size", "4", "--steps", "12", "--evaluation-tokens", "2048", "--sample-tokens", "0", "--trace"]  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("pin").add_argument("variant")
    commands.add_parser("leg").add_argument("folder", type=Path)
    changes = commands.add_parser("changes")
    changes.add_argument("old", type=Path)
    changes.add_argument("new", type=Path)
    asked = parser.parse_args(arguments)
    try:
        if asked.command == "pin":
            return write_pin(asked.variant)
        return leg(asked.folder) if asked.command == "leg" else write_changes(asked.old, asked.new)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


# -- pin -------------------------------------------------------------------------------------------------------------


def write_pin(variant: str) -> int:
    """Fetch first, and write only what was seen, all at once."""
    row = torch_first.row_of(variant)
    if row["channel"] != "nightly":
        raise ValueError(f"{variant} is no nightly: its version in variants.toml is its pin")
    index = os.environ.get("AMBIDEX_TORCH_INDEX") or row["index"]
    with tempfile.TemporaryDirectory() as folder:
        wanted = f"torch=={row['torch']}+{row['local']}" if "torch" in row else "torch"
        words = ["--pre", "--no-deps", "--only-binary=:all:", "--dest", folder, "--index-url", index, wanted]
        if torch_first.pip(*words, command="download"):
            raise ValueError(f"{wanted} could not be fetched from {index}; the pin stays as it is")
        (wheel,) = Path(folder).glob("torch-*.whl")
        pin = describe(wheel, index)
    if not pin["version"].endswith(f"+{row['local']}"):
        raise ValueError(
            f"{index} gave torch {pin['version']}, which is not a {row['local']} build; nothing was written"
        )
    path = torch_first.PINS / f"{variant}.json"
    path.parent.mkdir(exist_ok=True)
    draft = path.with_name(f".{path.name}")
    draft.write_text(json.dumps(pin, indent=2) + "\n", "utf-8")
    draft.replace(path)
    print(
        f"{path.relative_to(ROOT).as_posix()}: torch {pin['version']} of commit {pin['git'][:10]}, sha256 {pin['sha256'][:16]}..."
    )
    return 0


def describe(wheel: Path, index: str) -> dict[str, Any]:
    """What a wheel is, read from its own bytes."""
    with zipfile.ZipFile(wheel) as archive:
        said = constants(archive.read("torch/version.py").decode("utf-8"))
    return {
        "version": said["__version__"],
        "git": said["git_version"],
        "cuda": said["cuda"],
        "file": wheel.name,
        "size": wheel.stat().st_size,
        "sha256": torch_first.sha256(wheel),
        "index": index,
        "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def constants(source: str) -> dict[str, Any]:
    """`cuda: Optional[str] = '12.4'` -> {"cuda": "12.4"}: the plain values that a module sets, without running it."""
    found = {}
    for line in ast.parse(source).body:
        if isinstance(line, ast.Assign | ast.AnnAssign) and isinstance(line.value, ast.Constant):
            targets = line.targets if isinstance(line, ast.Assign) else [line.target]
            found |= {target.id: line.value.value for target in targets if isinstance(target, ast.Name)}
    return found


# -- leg -------------------------------------------------------------------------------------------------------------


def leg(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    found = {**record.look(), "libraries": libraries()}
    (folder / "record.json").write_text(json.dumps(found, indent=1, sort_keys=True), "utf-8")
    words = [sys.executable, "-m", "ambidex", "train", *TRAINING, "--out", str(folder / "run")]
    return subprocess.run(words, check=False).returncode


def libraries() -> dict[str, str]:
    """The hash of each library of torch's, as the wheel's own list states it."""
    files = importlib.metadata.files("torch") or []
    return {
        str(file): file.hash.value
        for file in files
        if file.hash and re.search(r"\.(so(\.\d+)*|dll|dylib|pyd)$", str(file))
    }


# -- changes ---------------------------------------------------------------------------------------------------------


def write_changes(old: Path, new: Path) -> int:
    """Says both, for a page of Markdown, and ends as `compare` does."""
    print("\n".join(inside(read(old), read(new))), flush=True)
    words = [sys.executable, "-m", "ambidex", "compare", str(old / "run"), str(new / "run")]
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", check=False
    )
    verdict = {0: "the same", 1: "they differ"}.get(done.returncode, f"not judged, exit {done.returncode}")
    print(f"\n### The numbers: {verdict}\n\n```\n{done.stdout.rstrip()}\n```")
    return done.returncode


def read(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "record.json").read_text("utf-8")))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} holds no record: {error}") from None


def inside(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What changed inside, by the two records."""
    before, after = old["torch"], new["torch"]
    lines = ["### What changed inside", "", f"torch {before['version']} -> {after['version']}"]
    if before["git"] != after["git"]:
        lines.append(f"https://github.com/pytorch/pytorch/compare/{before['git']}...{after['git']}")
    for what in ("cuda", "archs", "config_sha256"):
        if before[what] != after[what]:
            lines.append(f"- {what}: {short(before[what])} -> {short(after[what])}")
    lines += [f"- {line}" for line in table(versions(old), versions(new))]
    changed = [line.split(":")[0] for line in table(old["libraries"], new["libraries"])]
    if changed:
        lines.append(
            f"- {len(changed)} of torch's libraries: {', '.join(changed[:8])}{' ...' if len(changed) > 8 else ''}"
        )
    return lines if len(lines) > 3 else [*lines, "Nothing: not a byte of torch's libraries, and no package."]


def versions(found: dict[str, Any]) -> dict[str, str]:
    return {name: facts["version"] for name, facts in found["packages"].items()}


def table(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """`name: old -> new` for each that changed, came or went."""
    names = sorted(old.keys() | new.keys())
    return [
        f"{name}: {old.get(name, 'absent')} -> {new.get(name, 'absent')}"
        for name in names
        if old.get(name) != new.get(name)
    ]


def short(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)[:16]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
