"""``hf:NAME``: a data set of the Hugging Face hub, or one saved on this machine, through the `datasets` library."""

from __future__ import annotations

from ambidex.errors import Exit, Problem, Problems
from ambidex.text.readers import Source


def hub_source(name: str) -> Source:
    raise Problems(Problem(f"hf:{name}: not built yet"), Exit.DATA)
