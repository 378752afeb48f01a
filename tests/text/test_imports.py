"""The room is light: what only some data needs is imported when such data is read."""

from __future__ import annotations

import subprocess
import sys


def test_the_room_imports_neither_torch_nor_what_only_some_data_needs() -> None:
    program = (
        "import sys, ambidex.text;"
        "print({'torch', 'tokenizers', 'pyarrow', 'datasets'} & set(sys.modules) or 'light')"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "light\n"
