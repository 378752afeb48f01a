"""``hf:NAME``: a data set of the Hugging Face hub, or one on this machine, through the `datasets` library.

NAME is a name on the hub or a folder that `datasets` has saved or can read; ``hf:NAME#CONFIG`` picks a
configuration and ``hf:NAME@SPLIT`` a split, which is ``train`` where nothing is said.
"""

from __future__ import annotations

import os
import socket
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ambidex.errors import Exit, Problem, Problems
from ambidex.text.characters import utf8
from ambidex.text.readers import Document, Source, first_line, holds_text, missing_field

_SAVED = ("dataset_dict.json", "dataset_info.json")  # what `save_to_disk` leaves in a folder
_ROWS = 1000  # read at once
_PATIENCE = 3.0  # seconds; the library alone tries for 23 before it says that there is no network


@dataclass(frozen=True)
class HubDataset(Source):
    """A data set, of which the column ``field`` holds a document a row. Nulls hold none."""

    name: str
    size: int
    dataset: Any  # datasets.Dataset

    def content(self) -> Iterator[bytes]:
        """The rows as Arrow writes them to a stream: the files in which they lie may hold more of them."""
        import pyarrow

        for table in self.dataset.with_format("arrow").iter(batch_size=_ROWS):
            sink = pyarrow.BufferOutputStream()
            with pyarrow.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table)
            yield sink.getvalue().to_pybytes()

    def documents(self, field: str) -> Iterator[Document]:
        if field not in self.dataset.column_names:
            raise Problems(missing_field(self.name, "column", field, self.dataset.column_names), Exit.DATA)
        rows = self.dataset.select_columns([field]).with_format("arrow")
        for table in rows.iter(batch_size=_ROWS):
            if problem := holds_text(self.name, field, table.schema):
                raise Problems(problem, Exit.DATA)
            for text in table.column(0).to_pylist():
                if text:
                    yield iter([text if isinstance(text, bytes) else utf8(text)])


def hub_source(word: str) -> HubDataset:
    """The source of ``hf:`` and ``word``. Raises Problems (exit 3) within seconds where it cannot be had."""
    name, _, split = word.rpartition("@") if "@" in word and not Path(word).exists() else (word, "", "")
    name, _, configuration = name.partition("#") if not Path(name).exists() else (name, "", "")
    shown = f"hf:{word}"
    if not name:
        raise Problems(
            Problem("hf: names no data set", found=shown, wanted="hf:NAME of the hub, or hf:FOLDER"),
            Exit.DATA,
        )
    local = Path(name).is_dir()
    reachable = local or _hub_answers()
    datasets = _library(shown, offline=not reachable)
    try:
        if local and any((Path(name) / file).is_file() for file in _SAVED):
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, configuration or None)
    except (
        Exception
    ) as error:  # whatever the library, pyarrow or the network raise: to a user it is one thing
        raise Problems(_not_had(shown, error, reachable), Exit.DATA) from None
    dataset = _split(shown, loaded, split)
    return HubDataset(shown, int(dataset.data.nbytes), dataset)


def _split(shown: str, loaded: Any, split: str) -> Any:
    if not isinstance(loaded, dict):  # one split, saved alone
        return loaded
    wanted = split or ("train" if "train" in loaded or len(loaded) != 1 else next(iter(loaded)))
    if wanted not in loaded:
        raise Problems(
            Problem(f"{shown} has no split {wanted!r}", found=", ".join(loaded), fix="--data hf:NAME@SPLIT"),
            Exit.DATA,
        )
    return loaded[wanted]


def _library(shown: str, offline: bool) -> Any:
    """`datasets`, told to stay off the network where there is none; it still finds what is in its cache."""
    if offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read once, when the library is imported
    try:
        import datasets
        import huggingface_hub.constants
    except ImportError:
        raise Problems(
            Problem(
                f"{shown} needs the datasets library", found="not installed", fix='pip install "ambidex[hub]"'
            ),
            Exit.DATA,
        ) from None
    if offline:  # the caller may have imported them long ago
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    return datasets


def _hub_answers() -> bool:
    """Whether anything answers at the hub's address; behind a proxy only the library can find out."""
    if os.environ.get("HF_HUB_OFFLINE") or os.environ.get("HF_DATASETS_OFFLINE"):
        return False
    if urllib.request.getproxies():
        return True
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=_PATIENCE).close()
    except OSError:
        return False
    return True


def _not_had(shown: str, error: Exception, reachable: bool) -> Problem:
    if reachable:
        return Problem(f"{shown} cannot be had", found=first_line(error), fix="check the name")
    return Problem(
        f"{shown} cannot be had",
        found="the hub cannot be reached, and the data set is not in the cache of the datasets library",
        fix="connect to the network, or give a folder: --data hf:FOLDER",
    )
