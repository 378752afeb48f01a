"""A run as Python and a notebook see it: ``run = ambidex.train(...)``, then ``run.metrics``, ``run.plot()``, ``run.sample()``."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from ambidex import config, launch, runs, writing
from ambidex.errors import Exit, Problem, Problems
from ambidex.export import command as exporting
from ambidex.glance import whole
from ambidex.rows import COLUMNS, Row


def train(config_file: str | Path | None = None, /, **settings: Any) -> Run:
    """Train as `ambidex train` does; keywords are the flags with underscores. Returns the run.

    ``ambidex.train(preset="nano", steps=50, data=["book.txt"], out="my-run")``. Environment variables and a TOML file
    count as they do for the command; a keyword wins. Raises `Problems` with all that is wrong (``exit_code`` says of
    which kind), and KeyboardInterrupt where Ctrl-C stopped it, after a checkpoint.
    """
    given = {name: _as_typed(value) for name, value in settings.items()}
    resolved = config.resolve(given, file=Path(config_file) if config_file else None, called_from="argument")
    outcome = launch.start(resolved)
    if outcome.exit_code == Exit.INTERRUPTED:
        raise KeyboardInterrupt
    if outcome.exit_code:
        raise SystemExit(outcome.exit_code)
    return Run(outcome.run.path)


def _as_typed(value: Any) -> Any:
    """A path, or paths in a list, as text; anything else as it is."""
    if isinstance(value, list | tuple):
        return [_as_typed(one) for one in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class Run:
    """A run folder, finished or not. ``ambidex.Run("runs/nano-001")`` opens one; nothing is read before it is asked for."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def _folder(self) -> runs.Run:
        return runs.Run(self.path)

    @property
    def card(self) -> dict[str, Any]:
        """Everything that can change the run's numbers. Raises `Problems` (exit 3) where there is no run."""
        return self._folder.card

    @property
    def rows(self) -> Metrics:
        """A row a step, oldest first: `step`, `tokens`, `loss`, `val_loss` (None where not evaluated), `lr`, `grad_norm`,
        `seconds` and `tokens` from the run's start, `tokens_per_second`. Losses are in nats per token.
        """
        return Metrics(self._folder.metrics)

    @property
    def metrics(self) -> Any:
        """`rows` as a pandas frame where pandas is installed, else `rows` themselves. ``metrics["loss"]`` works in both."""
        try:
            import pandas
        except ImportError:
            return self.rows
        return pandas.DataFrame({name: self.rows[name] for name in COLUMNS})

    @property
    def step(self) -> int:
        """Updates that metrics.csv knows of."""
        rows = self.rows
        return rows[-1].step if rows else 0

    @property
    def val_loss(self) -> float | None:
        """The last validation loss, in nats per token; None where there is none yet."""
        return next((row.val_loss for row in reversed(self.rows) if row.val_loss is not None), None)

    def finished(self) -> bool:
        """Whether all of its steps are done and saved. Raises `Problems` (exit 3) where there is no run."""
        return self._folder.finished()

    def plot(self) -> Picture:
        """The losses by step, as a picture that a notebook shows. Raises `Problems` (exit 3) before the first step."""
        picture = self._folder.picture()
        if picture is None:
            raise Problems(Problem("The run has no metrics yet.", found=str(self.path)), Exit.DATA)
        return Picture(picture, f"losses of {self.path.name}")

    def sample(
        self,
        prompt: str = "",
        tokens: int = 200,
        *,
        temperature: float = 0.8,
        top_k: int = 0,
        seed: int = 0,
        device: str = "auto",
    ) -> str:
        """The prompt and ``tokens`` tokens after it, from the newest good checkpoint. The same seed gives the same text.

        Raises `Problems`: exit 2 for a number that cannot be, 3 where no checkpoint is good.
        """
        asked_by = "argument" if device != "auto" else "default"
        return "".join(
            writing.pieces(self.path, prompt, tokens, temperature=temperature, top_k=top_k, seed=seed,
                           device=device, asked_by=asked_by)
        )  # fmt: skip

    def export(self, to: str | Path, format: Literal["hf", "gguf"] = "hf") -> Path:  # noqa: A002  the flag's name
        """Write the newest good checkpoint for `transformers` or llama.cpp, as `ambidex export` does."""
        return exporting.export(self.path, format, to)

    def __repr__(self) -> str:
        loss = self.val_loss
        ending = "" if loss is None else f", validation loss {loss:.4f}"
        return f"Run({str(self.path)!r}: step {self.step}{ending})"

    def _repr_html_(self) -> str:
        try:
            card = self.card
        except Problems as problems:
            return f"<pre>{html.escape(str(problems))}</pre>"
        facts = {
            "device": f"{card.get('device', {}).get('name')}: {card.get('device', {}).get('reason')}",
            "precision": card.get("precision"),
            "parameters": f"{whole(card.get('parameters')) or 0:,}",
            "step": f"{self.step} of {card.get('config', {}).get('steps')}",
            "validation loss": "not yet" if self.val_loss is None else f"{self.val_loss:.4f} nats per token",
        }
        rows = "".join(
            f"<tr><th scope='row'>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
            for name, value in facts.items()
        )
        picture = self.plot()._repr_html_() if self.rows else ""
        name = html.escape(str(self.path))
        return f"<table><caption>{name}</caption>{rows}</table>{picture}"


class Picture:
    """A PNG that a notebook shows by itself. ``save(path)`` writes it to a file."""

    def __init__(self, png: bytes, words: str) -> None:
        self.png, self.words = png, words

    def save(self, path: str | Path) -> Path:
        """Write the picture and return the path. Raises OSError."""
        Path(path).write_bytes(self.png)
        return Path(path)

    def __repr__(self) -> str:
        return f"Picture({self.words!r}, {len(self.png):,} bytes of PNG)"

    def _repr_png_(self) -> bytes:
        return self.png

    def _repr_html_(self) -> str:
        content = base64.b64encode(self.png).decode()
        return f"<img alt='{html.escape(self.words, quote=True)}' src='data:image/png;base64,{content}'>"


class Metrics(Sequence[Row]):
    """Rows by number, columns by name: ``metrics[-1].loss``, ``metrics["loss"]``."""

    columns = COLUMNS

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = list(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> Metrics: ...
    @overload
    def __getitem__(self, at: str) -> list[Any]: ...
    def __getitem__(self, at: int | slice | str) -> Row | Metrics | list[Any]:
        if isinstance(at, str):
            if at not in COLUMNS:
                raise KeyError(f"{at!r}: the columns are {', '.join(COLUMNS)}")
            return [getattr(row, at) for row in self._rows]
        return Metrics(self._rows[at]) if isinstance(at, slice) else self._rows[at]

    def __repr__(self) -> str:
        return f"Metrics({len(self)} rows of {', '.join(COLUMNS)})"

    def _repr_html_(self) -> str:
        head = "".join(f"<th scope='col'>{name}</th>" for name in COLUMNS)
        shown = self._rows if len(self) <= 20 else [*self._rows[:10], *self._rows[-10:]]
        body = "".join(
            "<tr>" + "".join(f"<td>{cell}</td>" for cell in row.cells()) + "</tr>" for row in shown
        )
        left_out = len(self) - len(shown)
        note = f"<caption>{len(self)} steps" + (f", {left_out} in the middle left out" if left_out else "")
        return f"<table>{note}</caption><tr>{head}</tr>{body}</table>"
