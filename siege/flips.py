"""Single flipped bits in every byte region of a checkpoint, truncations, missing and swapped files: is one believed?"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from common import command, dice, story, to_the_end, warm, words

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def run(place: Path, flips: int = 2000, seed: int = 2) -> dict[str, Any]:
    warm()
    from ambidex import checkpoint

    out = place / "run"
    assert to_the_end(command(words(story(place), out, steps=4, save_every=2), place / "log.txt")) == 0
    folder = out / "checkpoints" / "step-000004"
    random = dice(seed)
    found: dict[str, Any] = {"flips": 0, "by_region": {}, "truncations": 0, "missing": 0, "swapped": 0, "lengthened": 0,
                             "detected": 0, "broken": []}  # fmt: skip

    def tried(what: str) -> None:
        try:
            checkpoint.load(folder)
        except checkpoint.Damaged:
            found["detected"] += 1
            if checkpoint.newest_good(out / "checkpoints").folder != folder.with_name("step-000002"):
                found["broken"].append(f"{what}: the one before was not taken")
        else:
            found["broken"].append(f"{what}: was loaded")

    for number in range(flips):
        name, region, places = _regions(folder)[number % 6]
        path = folder / name
        before = path.read_bytes()
        at = random.choice(places(len(before)))
        changed = bytearray(before)
        changed[at] ^= 1 << random.randrange(8)
        path.write_bytes(changed)
        tried(f"{name} byte {at}")
        path.write_bytes(before)
        found["flips"] += 1
        found["by_region"][region] = found["by_region"].get(region, 0) + 1
    for name in FILES:
        path = folder / name
        before = path.read_bytes()
        for length in sorted(
            {
                0,
                1,
                7,
                8,
                9,
                len(before) // 2,
                len(before) - 1,
                *(random.randrange(len(before)) for _ in range(20)),
            }
        ):
            os.truncate(path, length)
            tried(f"{name} cut to {length}")
            path.write_bytes(before)
            found["truncations"] += 1
        path.write_bytes(before + b"\0")
        tried(f"{name} lengthened")
        found["lengthened"] += 1
        path.unlink()
        tried(f"{name} missing")
        found["missing"] += 1
        for other in (
            *(folder / one for one in FILES if one != name),
            folder.with_name("step-000002") / name,
        ):
            shutil.copyfile(other, path) if other.exists() else None
            tried(f"{name} is {other}")
            found["swapped"] += 1
        path.write_bytes(before)
    checkpoint.load(folder)  # whole again
    return found


def _regions(folder: Path) -> list[tuple[str, str, Any]]:
    """File, name and the bytes of each region."""
    regions: list[tuple[str, str, Any]] = []
    for name in FILES[:2]:
        header = 8 + int.from_bytes((folder / name).open("rb").read(8), "little")
        regions.append((name, f"{name}, header", lambda size, header=header: range(header)))
        regions.append((name, f"{name}, numbers", lambda size, header=header: range(header, size)))
    return regions + [(name, name, range) for name in FILES[2:]]
