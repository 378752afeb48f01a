"""docs/siege.md, from the figures of the last whole run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

HEAD = """# The siege

The promise: *a run can be killed at any instant, on a full or failing disk, and `--resume` continues to the same final
bits as if nothing had happened, losing at most the work since the last checkpoint. No file that we read can run code.
Bad input gets a sentence.* This page is what came of trying to break it.

```
tox run -e siege                     # everything, the better part of an hour; prints the figures
tox run -e siege-small               # at most five minutes on a quiet machine; CI runs it
python siege/run.py kills flips      # some parts
```

The figures below were written by `python siege/run.py --write` on an AMD EPYC with Linux, each part on one core of a
machine that had other work, and the cost of a save on two;
`siege/figures.json` holds all of them. A part that could not run there says "not run".

| what was done | how often | came of it |
|---|---|---|
"""


def write(path: Path, figures: dict[str, Any]) -> None:
    rows = [row for part, found in figures.items() for row in ROWS[part](found)]
    rows += [(part, "not run yet on the code as it is", "") for part in ROWS if part not in figures]
    text = HEAD + "".join(f"| {what} | {often} | {came} |\n" for what, often, came in rows)
    if "peers" in figures:
        text += peers(figures["peers"])
    path.write_text(
        text
        + (
            Path(__file__).with_name("notes.md").read_text()
            if Path(__file__).with_name("notes.md").exists()
            else ""
        )
    )


def kills(f: dict[str, Any]) -> list[tuple[str, str, str]]:
    what = "SIGKILL at a random instant, one to three times a run, then resumed until done"
    before = f.get("before")  # figures of more runs, of an earlier state of the code
    rows = [(what, f)] + ([(f"the same, {before['code']}", before)] if before else [])
    return [(
        what, f"{f['runs']} runs, {f['kills']} kills, {f['kills_inside_a_save']} of them inside a save",
        f"{f['identical']} ended in the same bits: weights, moments, all rows; {len(f['different_or_lost'])} did not",
    ) for what, f in rows]  # fmt: skip


def disk(f: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    broken = (
        f"{len(f['broken'])} lost anything"
        if f["broken"]
        else "none lost anything: the old or the new one is good, and it was said"
    )
    for kind, count in f.get("saves_with_a_fault_at_each_call", {}).items():
        rows.append((f"a save on a failing disk: {kind}", f"{count} saves, one for each call", broken))
    if "runs_with_a_fault" in f:
        r = f["runs_with_a_fault"]
        rows.append(("a run that meets one of these faults, then is resumed on a whole disk", f"{r['runs']} runs",
                     f"{r['ended_well']} went on to the end, {r['ended_in_4']} stopped with exit 4; {r['identical_after_resume']} ended in the same bits"))  # fmt: skip
    if "resumes_with_a_fault" in f:
        r = f["resumes_with_a_fault"]
        rows.append(("a killed run, resumed on a disk that from some call on cannot be listed or read, then on a whole one",
                     f"{r['resumes']} resumes", f"{r['refused']} refused, none began afresh; {r['identical_on_a_whole_disk']} ended in the same bits"))  # fmt: skip
    if "saves_on_a_small_file_system" in f:
        r, runs = f["saves_on_a_small_file_system"], f["runs_on_a_small_file_system"]
        rows.append(
            (
                "a save on a file system with 0 to 236 kB left",
                f"{r['saves']} saves",
                f"{r['refused']} refused; {broken}",
            )
        )
        rows.append(("a run whose disk fills, or turns read-only, under way, then is resumed", f"{runs['runs']} runs",
                     f"{runs['ended_in_4']} stopped with exit 4; {runs['identical_after_resume']} ended in the same bits"))  # fmt: skip
    return rows + not_run("disk", f)


def flips(f: dict[str, Any]) -> list[tuple[str, str, str]]:
    tried = f["flips"] + f["truncations"] + f["missing"] + f["swapped"] + f["lengthened"]
    return [("one flipped bit, over every region; truncations; missing, swapped and longer files",
             f"{f['flips']} flips, {f['truncations']} truncations, {f['missing'] + f['swapped'] + f['lengthened']} others",
             f"{f['detected']} of {tried} detected and the one before taken; {len(f['broken'])} loaded")]  # fmt: skip


def badinput(f: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [("bad input made by hypothesis: " + ", ".join(f"{n:,} {name}" for name, n in f["cases"].items()),
             f"{f['total']:,} cases", f"{len(f['broken'])} tracebacks or cases over {f['bounds']}; "
             f"slowest {f['slowest_seconds']} s, most memory {f['most_MB']} MB")]  # fmt: skip


def signals(f: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for key, name in (("process", "SIGTERM, SIGINT, SIGHUP at a random instant of a process"),
                      ("process_1", "SIGTERM, SIGINT at a random instant of process 1 of a process namespace (`unshare`)")):  # fmt: skip
        if key in f:
            r = f[key]
            rows.append((name, f"{r['instants']} instants", f"{r['stopped_with_the_code']} stopped with their code, "
                         f"{r['finished_before']} had finished; {r['identical_after_resume']} ended in the same bits"))  # fmt: skip
    return rows + not_run("signals", f)


def container(f: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    if "instants" in f:
        stopped = f["stopped_before_the_first_step"] + f["stopped_in_training"]
        rows.append(("`docker stop` at a random instant of a container's life", f"{f['instants']} instants",
                     f"{stopped} stopped with exit 143, {f['stopped_in_training']} of them in training, {f['ended_before']} "
                     f"had finished; {f['identical_after_resume']} ended in the same bits; the slowest stop took {f['slowest_stop_seconds']} s"))  # fmt: skip
    return rows + not_run("container", f)


def soak(f: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(f"a long run with a save every {1 / f['saves_per_second']:.1f} s (a second is meant; the machine decides)",
             f"{f['seconds']:.0f} s, {f['saves']:,} saves",
             f"memory {f['resident_MB_second_fifth']} MB, then {f['resident_MB_last_fifth']} MB ({f['memory_growth']}); at most "
             f"{f['open_files_at_most']} open files; at most {f['checkpoints_on_disk_at_most']} checkpoints' worth of disk")]  # fmt: skip


def cost(f: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(f"preset 45m, {f['precision']}, {f['threads']} threads: a save beside training",
             f"a step takes {f['step_seconds']} s, a checkpoint {f['checkpoint_MB']} MB",
             f"training stands still for {f['stand_still_seconds']} s; with the slower steps beside it a save costs "
             f"{f['extra_seconds_a_save']} s: {f['share_of_step_time_by_default']} at the default of a save every "
             f"{f['steps_between_saves_by_default']} steps, 2 % at one every {f['steps_between_saves_for_2_percent']}")]  # fmt: skip


def peers(f: dict[str, Any]) -> str:
    lines = ["\n## The same against transformers' Trainer\n", "",
             f"transformers {f['transformers']['version']}, a model as small, as it comes (`save_steps`, "
             "`resume_from_checkpoint=True`), the same kills and flips. \"Silently wrong\": it ended well, in other bits "
             "than without a kill; or a damaged file was loaded without a word.\n",
             "", "| | ambidex | transformers' Trainer |", "|---|---|---|"]  # fmt: skip
    names = {"runs": "runs killed", "identical": "ended in the same bits", "silently_wrong": "ended in other bits, silently",
             "lost": "could not be resumed without a hand that removes a folder", "flips": "flipped bits", "flips_loaded": "of these loaded without a word",
             "flips_refused": "refused with an error", "flips_harmless": "in bytes that nothing reads"}  # fmt: skip
    for key, name in names.items():
        lines.append(f"| {name} | {f['ambidex'].get(key, '')} | {f['transformers'].get(key, '')} |")
    return "\n".join(lines) + "\n"


def not_run(part: str, f: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(f"{part}: {why}", "not run", "") for why in f["not_run"]]


ROWS = {"kills": kills, "disk": disk, "flips": flips, "badinput": badinput, "signals": signals, "container": container, "soak": soak, "cost": cost,
        "peers": lambda f: []}  # fmt: skip
