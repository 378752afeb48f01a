"""`ambidex export`: the newest good checkpoint of a run into a folder that appears whole or not at all.

A folder that is there already is replaced only where every file in it is as an earlier export of the same format
wrote it. Anything else is somebody's work and stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from ambidex import trained
from ambidex.errors import Exit, Problem, Problems
from ambidex.escaping import one_line
from ambidex.export import huggingface, llama, modelcard
from ambidex.files import read_small, replace_synced, sync_folder, write_synced
from ambidex.resume import check_place, settings_of
from ambidex.runs import PLOT, NotDrawn, Run, cannot_write
from ambidex.screen import line
from ambidex.trained import Trained

Format = Literal["hf", "gguf"]
FORMATS: tuple[str, ...] = get_args(Format)
MANIFEST = "export.json"
LARGEST_MANIFEST = 1 << 20  # bytes


def export(path: Path | str, kind: str, to: Path | str) -> Path:
    """Write run ``path`` to the folder ``to`` in format "hf" or "gguf". Returns the folder.

    Raises Problems: exit 2 for a format, a folder or a model that cannot be, 3 for a run without a good checkpoint, 4 where
    it cannot be written.
    """
    run, target = Run(path), Path(to)
    _check_not_here(to)
    check(kind, target, run)
    found = trained.newest(run)
    for words in found.skipped:
        print(words, file=sys.stderr)
    unfinished = target.absolute().parent / f".{target.absolute().name}.{os.getpid()}"
    try:
        unfinished.mkdir(parents=True)
        fill(unfinished, found, run, kind, target.absolute().name)
        _appear(unfinished, target.absolute())
    except OSError as error:
        raise cannot_write(target, error, "The export", "--to") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    line("exported", f"{target}: step {found.step} of {run.path}, {sum(found.model.shape.parameters().values()):,} "
                     f"parameters in fp32, as {'a folder for transformers' if kind == 'hf' else 'GGUF'}")  # fmt: skip
    line("next", f"{target / 'README.md'} says how to use it")
    return target


def check(kind: str, target: Path, run: Run) -> None:
    """All that can be wrong before any work is done, at once."""
    problems: list[Problem] = []
    code = int(Exit.USAGE)
    if kind not in FORMATS:
        problems.append(
            Problem("There is no such format.", found=f"--format {kind}", wanted=" or ".join(FORMATS))
        )
    checks: list[Callable[[], None]] = [
        lambda: check_place(target, "--to", "The export"),
        lambda: _check_contents(target, kind),
        lambda: _check_layout(run),
    ]
    if kind == "gguf":
        checks.append(llama.check)
    for one in checks:
        try:
            one()
        except Problems as wrong:
            problems += wrong.problems
            code = wrong.exit_code
    if problems:
        raise Problems(problems, code)


def _check_layout(run: Run) -> None:
    """Raise Problems where the model has what neither format has a place for."""
    ngrams = settings_of(run.card).ngrams if run.holds_card() else 1
    if ngrams > 1:
        raise Problems(
            Problem("This model cannot be exported: no format has a place for a second table, of groups of tokens.",
                    found=f"{run.path}, trained with --ngrams {ngrams}", wanted="a model trained with --ngrams 1",
                    fix="ambidex train ... --ngrams 1 --out NEW, with more --steps and --width (docs/export.md has a command)")
        )  # fmt: skip


def _check_not_here(to: Path | str) -> None:
    """Raise Problems for an empty name, and for the folder that we stand in: the export takes its folder's place."""
    given, here = str(to), Path.cwd()
    if not given.strip() or Path(to).resolve() in (here, *here.parents):
        raise Problems(
            Problem("--to is the folder that this was started in, or holds it." if given.strip() else "--to is empty.",
                    found=repr(given), wanted="the name of a folder for the export", fix="--to model")
        )  # fmt: skip


def _check_contents(target: Path, kind: str) -> None:
    """Raise Problems where the folder holds anything but an untouched export of the same format."""
    if not os.path.isdir(target) or not (others := _foreign(target, kind)):  # noqa: PTH112
        return
    raise Problems(
        Problem("--to holds something else.", found=f"{target}: {', '.join(others[:5])}",
                wanted="a new or an empty folder, or an earlier export of the same format with nothing changed in it",
                fix="give another folder")
    )  # fmt: skip


def _foreign(target: Path, kind: str) -> list[str]:
    """Names in the folder that are not, byte for byte, of an export of format ``kind``."""
    there = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir())
    try:
        manifest: dict[str, Any] = json.loads(read_small(target / MANIFEST, LARGEST_MANIFEST))
        ours = dict(manifest["files"]) if manifest["format"] == kind else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return there
    if not ours:
        return there
    return [
        name
        for name in there
        if name != MANIFEST and ((target / name).is_symlink() or ours.get(name) != _sha256(target / name))
    ]


def fill(folder: Path, found: Trained, run: Run, kind: str, name: str) -> None:
    """Write every file of the export, which will be called ``name``, each to the disk, and the manifest last."""
    picture = _picture(run)
    if kind == "hf":
        for file, content in huggingface.files(found).items():
            write_synced(folder / file, content)
    else:
        title = one_line(run.path.resolve().name)
        llama.write(found, folder / llama.MODEL, title, f"step {found.step}, trained with Ambidex")
        write_synced(folder / "Modelfile", llama.modelfile(found.settings.context).encode())
    if picture is not None:
        write_synced(folder / PLOT, picture)
    write_synced(
        folder / "README.md", modelcard.model_card(found, run, kind, name, picture is not None).encode()
    )
    write_synced(folder / modelcard.SETTINGS, modelcard.settings_toml(found).encode())
    manifest = {"format": kind, "step": found.step, "data": found.card.get("data", {}).get("hash")}
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    replace_synced(folder / MANIFEST, (json.dumps({**manifest, "files": files}, indent=1) + "\n").encode())
    sync_folder(folder)


def _picture(run: Run) -> bytes | None:
    """An export is whole without one."""
    try:
        return run.picture()
    except NotDrawn as why:
        line("", f"no {PLOT}: {why.problems[0].found}")
        return None


def _appear(unfinished: Path, target: Path) -> None:
    """Put the finished folder in its place by renaming."""
    replaced = unfinished.with_name(f"{unfinished.name}.replaced")
    with contextlib.suppress(FileNotFoundError):
        target.rename(replaced)
    try:
        unfinished.rename(target)
    except OSError:
        if replaced.exists():
            replaced.rename(target)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
    sync_folder(target.parent)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while some := file.read(1 << 20):
            digest.update(some)
    return digest.hexdigest()
