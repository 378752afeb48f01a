"""What a release is called, and whether everything that says so agrees.

python tools/release.py --tag v0.1.0          exit 1 where version, changelog or citation say something else
python tools/release.py --image-tags cpu      the tags of an image: its variant, and the torch inside
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"])


def disagreements(tag: str, root: Path = ROOT) -> list[str]:
    """A sentence for each place that does not say the version that the tag does."""
    asked = tag.removeprefix("v")
    places = {
        "pyproject.toml": r'^version = "(.+)"$',
        "src/ambidex/__init__.py": r'^__version__ = "(.+)"$',
        "CITATION.cff": r"^version: (.+)$",
        "CHANGELOG.md": r"^## (.+)$",  # the newest section
    }
    found = []
    for name, pattern in places.items():
        says = re.search(pattern, (root / name).read_text("utf-8"), re.MULTILINE)
        if says is None or says[1] != asked:
            found.append(f"{name} says {says[1] if says else 'nothing'}, and the tag is {tag}")
    return found


def image_tags(variant: str) -> list[str]:
    """The moving tag first, then those that stay: by torch version, and by ours too."""
    rows = tomllib.loads((ROOT / "src/ambidex/device/variants.toml").read_text("utf-8"))
    torch = rows[variant].get("torch")
    return [variant, *([f"{variant}-torch{torch}", f"{version()}-{variant}-torch{torch}"] if torch else [])]


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--image-tags"] and len(arguments) == 2:
        print("\n".join(image_tags(arguments[1])))
        return 0
    if arguments[:1] == ["--tag"] and len(arguments) == 2:
        wrong = disagreements(arguments[1])
        for sentence in wrong:
            print(f"error: {sentence}", file=sys.stderr)
        return 1 if wrong else 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
