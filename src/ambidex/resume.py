"""Which run is continued, whether it may be, and from which checkpoint."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ambidex import checkpoint, config, plan, runs
from ambidex.cardfile import CARD, check_card
from ambidex.checkpoint import Checkpoint, Damaged
from ambidex.combinations import impossible
from ambidex.config import Resolved, Settings
from ambidex.device.choose import Choice
from ambidex.device.paths import broken_link
from ambidex.errors import Exit, Problem, Problems
from ambidex.escaping import one_line, typed
from ambidex.parallel.group import Group
from ambidex.rows import METRICS
from ambidex.runs import Follower, Run
from ambidex.screen import line
from ambidex.text.tokens import Tokens
from ambidex.trainer import Rhythm, Trainer


def named_run(settings: Settings) -> Run | None:
    """The run that --out names. Refuses a folder that holds a run, without --resume, or something else."""
    if not settings.out:
        check_place(runs.runs_folder(), "AMBIDEX_RUNS")
        return None
    run = Run(settings.out)
    check_place(run.path, "--out")
    if settings.resume and not settings.dry_run:
        mend_card(run)
    if run.holds_card() and not (settings.resume or settings.dry_run):
        raise Problems(
            Problem("--out holds a run already.", found=str(run.path), wanted="a new folder, or --resume",
                    fix=f"ambidex train --out {typed([str(run.path)])} --resume")
        )  # fmt: skip
    if (
        not run.holds_card()
        and run.path.is_dir()
        and any(not p.name.startswith(".") for p in run.path.iterdir())
    ):
        raise Problems(
            Problem("--out holds something that is no run.", found=f"{run.path}: no {CARD}",
                    wanted="a new or an empty folder, or a run to --resume")
        )  # fmt: skip
    return run


def check_place(path: Path, name: str, what: str = "The run folder") -> None:
    """Raise Problems, before any work is done, where no folder can be at ``path`` (exit 2; 4: not writable)."""
    try:
        if "\0" in str(path):
            raise OSError(errno.EINVAL, "a NUL character in the name")
        there = next(place for place in (path, *path.parents) if place.exists())
    except OSError as error:
        raise Problems(
            Problem(f"{name} cannot be the name of a folder.", found=f"{str(path)[:80]!r}: {error.strerror}",
                    wanted="a new or an empty folder")
        ) from None  # fmt: skip
    if leads := broken_link(path):
        raise Problems(
            Problem(f"{name} is a link that leads to nothing.", found=f"{path} -> {leads}", wanted="a new or an empty folder")
        )  # fmt: skip
    if there == path and not there.is_dir():
        raise Problems(
            Problem(f"{name} is not a folder.", found=str(path), wanted="a new or an empty folder")
        )
    if not there.is_dir():
        raise runs.cannot_write(path, NotADirectoryError(errno.ENOTDIR, f"{there} is no folder"), what, name)
    if not os.access(there, os.W_OK | os.X_OK):
        raise runs.cannot_write(
            path, PermissionError(errno.EACCES, f"{there} may not be written to"), what, name
        )


def mend_card(run: Run) -> None:
    """Where the card is gone, write the one that the newest good checkpoint holds, and say so.

    One that is there and cannot be read is an error (exit 3) that says how to have it replaced: nobody but its owner
    knows what was done to it.
    """
    steps = checkpoint.steps_in(run.checkpoints)
    if run.holds_card():
        try:
            settings_of(run.card)
        except Problems as problems:
            if (copy := _copy_of_card(run, steps)) is None:
                raise
            fix = f"remove {run.path / CARD}: --resume writes it again from {checkpoint.folder_name(copy[0])}"
            raise Problems(
                [replace(one, fix=one.fix or fix) for one in problems.problems], problems.exit_code
            ) from None
    elif steps:
        if (copy := _copy_of_card(run, steps)) is None:
            raise Problems(
                Problem("The run's card is gone, and no checkpoint holds a copy.", found=f"{run.path}: no {CARD}",
                        wanted=f"the {CARD} that ambidex train wrote", fix="start another run with another --out"), Exit.DATA,
            )  # fmt: skip
        run.lock()
        run.write_bytes(CARD, json.dumps(copy[1], indent=2).encode())
        line("card", f"{CARD} was gone: written again from {checkpoint.folder_name(copy[0])}")


def _copy_of_card(run: Run, steps: Sequence[int]) -> tuple[int, dict[str, Any]] | None:
    """The newest that can be used, and the step that holds it."""
    for step in reversed(steps):
        try:
            card: dict[str, Any] = checkpoint.load_state(run.checkpoints / checkpoint.folder_name(step)).get(
                "card", {}
            )
            check_card(card)
            settings_of(card)
        except (Damaged, ValueError, Problems):
            continue
        return step, card
    return None


def with_card(resolved: Resolved, card: Mapping[str, Any]) -> Resolved:
    """The settings of the run that is continued. Whatever was asked for besides must not contradict its numbers."""
    given = {name: value for name, value in resolved.given().items() if name not in ("resume", "out")}
    before = settings_of(card)
    decisive = {name for name, info in config.fields().items() if config.is_numeric(info)} | {
        "preset",
        "time",
    }
    if before.time and resolved.kind("steps") != "flag":
        given.pop("steps", None)  # the run's were made of --time, whatever a file says besides
    numbers = {name: value for name, value in given.items() if config.is_numeric(config.fields()[name])}
    same = before.model_copy(update=numbers).numeric() == before.numeric()
    without_effect = set(numbers) if same else set()  # such as when blocks join of which none waits
    problems = [
        Problem("The run that is to be continued has another configuration.",
                found=f"{config.flag(name)} {value} ({resolved.origins[name]})",
                wanted=f"{config.flag(name)} {getattr(before, name)}, as in its {CARD}",
                fix="leave it out, or start another run with another --out")
        for name, value in given.items() if name in decisive - without_effect and value != getattr(before, name)
    ]  # fmt: skip
    if problems:
        raise Problems(problems)
    free = {name: value for name, value in given.items() if name not in decisive}
    kept = {"resume": True, "out": resolved.settings.out, "dry_run": resolved.settings.dry_run}
    settings = before.model_copy(update={**free, **kept})
    origins = {name: resolved.origins[name] if name in free else CARD for name in resolved.origins}
    return Resolved(settings, origins, resolved.asked_devices)


def settings_of(card: Mapping[str, Any]) -> Settings:
    if "data" not in card and "computes_in" in card:
        raise Problems(
            Problem("This is a trace of a loop of one's own, which ambidex cannot play again.", found="a card of ambidex.trace",
                    wanted="a run of ambidex train", fix="for more legs run that loop again under ambidex.trace(..., leg=4), 5 and so on"),
            Exit.DATA,
        )  # fmt: skip
    try:
        settings = Settings.model_validate(card["config"])
    except ValueError as error:
        raise Problems(
            Problem("The run's card holds settings that this version does not understand.",
                    found=one_line(": ".join(part.strip() for part in str(error).splitlines()[1:3]) or str(error)), wanted="a card of the same version of ambidex"), Exit.DATA,
        ) from None  # fmt: skip
    if problems := [problem for _, problem in impossible(settings)]:
        raise Problems([replace(one, found=f"{one.found}, in {CARD}", fix="") for one in problems], Exit.DATA)
    return settings


def unfinished_run(resolved: Resolved, tokens: Tokens, choice: Choice) -> Run | None:
    """The newest unfinished run of the same configuration, text and kind of device, taken for this process.

    One that another process trains is passed over: asking for "a run like this" is never refused.
    """
    wanted = resolved.settings.numeric() | {"time": resolved.settings.time}
    if resolved.settings.time:
        del wanted["steps"]

    def matches(card: Mapping[str, Any]) -> bool:
        settings = settings_of(card)  # an older card lacks newer settings, which then stand as they were
        before = settings.model_dump() | settings.numeric()
        return (
            all(before[name] == value for name, value in wanted.items())
            and card["data"]["hash"] == tokens.data_hash
            and str(card["device"]["name"]).split(":")[0] == choice.name.split(":")[0]
        )

    for run in runs.unfinished(
        matches, lambda run, why: line("", f"passed over {run.path}: {one_line(why)}")
    ):
        try:
            run.lock()
        except Problems:
            continue
        return run
    return None


def check_same_text(card: Mapping[str, Any], tokens: Tokens) -> None:
    before = str(card.get("data", {}).get("hash", ""))
    if before != tokens.data_hash:
        raise Problems(
            Problem("The text is not the one that the run was started with.",
                    found=f"data hash {tokens.data_hash[:16]}", wanted=f"data hash {before[:16]}, as in its {CARD}",
                    fix="give the same text with --data, or start another run with another --out")
        )  # fmt: skip


def check_fits(run: Run, settings: Settings, vocabulary_size: int) -> None:
    """Raise Problems (exit 3), before a model takes memory, where the newest checkpoint's headers are of another one.

    A card and a checkpoint may come from anywhere, and a card may promise any size.
    """
    wanted = plan.tensors_of(settings, vocabulary_size)
    steps = checkpoint.steps_in(run.checkpoints)
    reasons = []
    for step in reversed(steps):
        folder = run.checkpoints / checkpoint.folder_name(step)
        try:
            checkpoint.check_headers(folder, wanted)
            return
        except Damaged as damage:
            reasons.append(one_line(f"skipped {folder.name}: {damage}", 300))
    if steps:
        check_card_agrees(run, settings)
        raise _none_good(reasons)


def check_card_agrees(run: Run, settings: Settings, groups: Sequence[str] = ()) -> None:
    """`check_agrees` with the newest checkpoint whose state can be read, whatever its tensors are."""
    for step in reversed(checkpoint.steps_in(run.checkpoints)):
        try:
            state = checkpoint.load_state(run.checkpoints / checkpoint.folder_name(step))
        except Damaged:
            continue
        check_agrees(Checkpoint(step, {}, {}, state), settings, groups=groups)
        return


def restore_newest(trainer: Trainer, run: Run) -> None:
    """Load the newest good checkpoint, naming what is passed over. A run of which none is good is an error."""
    try:
        checkpoint.list_steps(run.checkpoints)
    except OSError as error:  # not the same as none: starting afresh would lose what is there
        raise Problems(
            Problem("The run's checkpoints cannot be listed.", found=f"{run.checkpoints}: {error.strerror or error}",
                    wanted="the folder that ambidex train wrote", fix="mend the disk or the permission, then repeat the command"),
            Exit.DATA,
        ) from None  # fmt: skip
    checkpoint.clear_unfinished(run.checkpoints)
    wanted = plan.tensors_of(trainer.settings, trainer.model.shape.vocabulary_size)
    found = checkpoint.newest_good(run.checkpoints, wanted)
    for words in found.skipped:
        line("", words)
    if found.checkpoint is None and found.skipped:
        raise _none_good(found.skipped)
    if found.checkpoint is None:
        check_none_saved(run)
        line("", "no checkpoint had been written yet: starting at step 0")
    else:
        check_agrees(found.checkpoint, trainer.settings, trainer.device.precision)
        check_state(found.checkpoint, trainer.settings)
        trainer.restore(found.checkpoint)
    if said := run.cut_back(trainer.step):
        line("", said)


def check_none_saved(run: Run) -> None:
    """Raise Problems (exit 3) where there is no checkpoint and there must have been one: that is never a fresh start.

    How often it saved says the card: this attempt may save at other steps.

    The second save waits for the first, so a row after it means that the first was good; and so does a summary.
    """
    rows, second_save = run.metrics, 2 * Rhythm.of(settings_of(run.card)).save_every
    last = rows[-1].step if rows else 0
    if last > second_save or os.path.lexists(run.path / runs.SUMMARY):
        raise Problems(
            Problem("The run's checkpoints are gone.", found=f"{last:,} steps in {METRICS}, and no checkpoint in {run.checkpoints}",
                    wanted="those that it had saved", fix="put them back, or start another run with another --out"), Exit.DATA,
        )  # fmt: skip


def check_agrees(
    saved: Checkpoint, settings: Settings, precision: str = "", groups: Sequence[str] = ()
) -> None:
    """Raise Problems (exit 3) where a setting that decides numbers is not on the card what it was when it was saved:
    any, or one of these ``groups`` of settings.

    A card has no hash: this is how a flipped bit in one is found.
    """
    then: dict[str, Any] = {
        **saved.state.get("config", {}),
        "precision": saved.state.get("precision", precision),
    }
    names = {
        name for name in settings.numeric() if not groups or config.group(config.fields()[name]) in groups
    }
    now = {**settings.model_dump(mode="json", include=names), "precision": precision or then["precision"]}
    found = [f"{name} {str(now[name])[:40]}, in the checkpoint {str(then[name])[:40]}"
             for name in now if name in then and now[name] != then[name]]  # fmt: skip
    if found:
        raise Problems(
            Problem(f"{CARD} is not as it was when step {saved.step} was saved.", found=one_line("; ".join(found[:4])),
                    wanted="the card that this run had",
                    fix=f"remove {CARD}: --resume writes it again from the newest good checkpoint"), Exit.DATA,
        )  # fmt: skip


def check_state(saved: Checkpoint, settings: Settings) -> None:
    """Raise Problems (exit 3) where something that the rest of the run depends on is not there, or cannot be."""
    missing = [name for name in ("optimizer_steps", "seconds", "best", "scale") if name not in saved.state]
    if missing:
        raise Problems(
            Problem(
                f"{checkpoint.STATE} is not of this version: it lacks something.",
                found="no " + ", ".join(missing),
            ),
            Exit.DATA,
        )
    if saved.step > settings.steps or saved.state["optimizer_steps"] > saved.step:
        raise Problems(
            Problem("The checkpoint is of another run.", found=f"step {saved.step}, {saved.state['optimizer_steps']} updates",
                    wanted=f"at most {settings.steps} steps, and no more updates than steps"), Exit.DATA,
        )  # fmt: skip
    growth, late = plan.growth_of(settings), saved.state.get("late_steps")
    if growth.step:
        updates = int(saved.state["optimizer_steps"])
        least, most = max(0, updates - growth.step), min(updates, max(0, saved.step - growth.step))
        if late is None or not least <= late <= most:
            raise Problems(
                Problem("The checkpoint is of another run.", found=f"{late} updates of the blocks that join late, at step {saved.step}",
                        wanted=f"{least}" + (f" to {most}" if most > least else "")), Exit.DATA,
            )  # fmt: skip


LOCAL = {"out", "data", "device", "threads"}  # settings that may differ between the processes of a run


def shared(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude=LOCAL)


def restarted(resolved: Resolved, group: Group) -> Resolved:
    """What torchrun starts anew, after it lost a process, goes on with the run that it had begun."""
    before = group.begun()
    if not before and not group.highest(group.place.attempt):
        return resolved
    line("restart", "by torchrun: going on from the last checkpoint")
    update = {"resume": True} | (
        {"out": os.fsdecode(bytes.fromhex(before))} if before and not resolved.settings.out else {}
    )
    return replace(resolved, settings=resolved.settings.model_copy(update=update))


def named(resolved: Resolved) -> tuple[Run | None, Resolved]:
    run = named_run(resolved.settings)
    return run, with_card(resolved, run.card) if run is not None and run.holds_card() else resolved


def unfinished(resolved: Resolved, tokens: Tokens, choice: Choice) -> tuple[Run | None, Resolved]:
    run = unfinished_run(resolved, tokens, choice)
    return run, with_card(resolved, run.card) if run else resolved


def take(run: Run, card: Mapping[str, Any]) -> None:
    """Lock a run for this process. Raises Problems (exit 7) where another has begun one there since ``card`` was read.

    Between looking and locking lies all that prepares a training, which may be hours: then that folder holds a run, and
    who takes it for empty would train over it.
    """
    run.lock()
    if not card and run.holds_card():
        run.unlock()
        raise Problems(
            Problem("Another process has begun a run here while this one prepared its own.", found=str(run.path),
                    wanted="one training at a time in a run folder",
                    fix=f"{run.command_to_resume()} continues it; another --out begins another"), Exit.IN_USE,
        )  # fmt: skip


def new_run(resolved: Resolved) -> Run:
    return Run(resolved.settings.out or runs.next_folder(resolved.settings.preset))


def same_run(
    group: Group, resolved: Resolved, find: Callable[[], tuple[Run | None, Resolved]]
) -> tuple[Run | None, Resolved]:
    """The run and its settings as the process that writes finds them; the others follow, with their own places."""
    found: list[tuple[Run | None, Resolved]] = []

    def look() -> dict[str, Any]:
        run, settled = found_here = find()
        found.append(found_here)
        if group.size == 1:
            return {}
        card = run.card if run is not None and run.holds_card() else {}
        return {
            "run": None if run is None else os.fsencode(run.path).hex(),
            "card": card,
            "settings": settled.settings.model_dump(mode="json"),
        }

    told = group.from_writer(look)
    if found:
        return found[0]
    own = {name: value for name, value in resolved.given().items() if name in LOCAL}
    settings = Settings.model_validate(told["settings"]).model_copy(update=own)
    path = None if told["run"] is None else Path(os.fsdecode(bytes.fromhex(told["run"])))
    return None if path is None else Follower(path, told["card"]), replace(resolved, settings=settings)


def restore_everywhere(trainer: Trainer, run: Run) -> None:
    """Restore in the process that holds the run folder, and copy its state into the others: they need no disk of it."""
    group = trainer.group

    def restored() -> dict[str, Any]:
        restore_newest(trainer, run)
        return {"step": trainer.step, **trainer.snapshot().state} if group.size > 1 else {}

    state = group.from_writer(restored)
    if group.size == 1:
        return
    model = {name: weight.detach() for name, weight in trainer.model.named_parameters()}
    moments = trainer.optimizer.state()
    if not group.writes and state["optimizer_steps"]:
        like = next(iter(model.values()))
        moments = {name: like.new_zeros(shape) for name, shape in trainer.optimizer.shapes().items()}
    group.from_writer_tensors([*model.values(), *(moments[name] for name in sorted(moments))])
    if not group.writes:
        trainer.restore(Checkpoint(state["step"], model, moments, state))


def _none_good(reasons: Sequence[str]) -> Problems:
    return Problems(
        Problem("No checkpoint of the run is good.", found="; ".join(reasons[:6]),
                wanted="one whose files are as they were written", fix="start another run with another --out"), Exit.DATA,
    )  # fmt: skip
