"""``python -m ambidex``: the same as ``ambidex``."""

from ambidex.cli import entry

if __name__ == "__main__":
    entry()
