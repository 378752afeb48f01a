"""Whatever hypothesis thinks of, for every reader: a sentence or an answer, within a bound of time and memory."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import command, story, to_the_end, warm, words
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

MOST_SECONDS, MOST_MB = 5.0, 512  # of the processor, which other work on the machine does not lengthen
STUCK = 60.0  # seconds after which a case that waits is given up
DEEP = "[" * 100_000
numbers = st.one_of(
    st.integers(-3, 40), st.integers(), st.floats(), st.sampled_from([2**31, 2**53, 2**63, 2**64, 10**400])
)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
odd = st.sampled_from(
    ["\x1b[2J", "../../etc/passwd", "\u202egnp", "a" * 5000, "", "\n# Heading", "|", "`", "nan", "w"]
)
values = st.recursive(st.one_of(st.none(), st.booleans(), numbers, text, odd),
                      lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.one_of(text, odd), inner, max_size=4)),
                      max_leaves=12)  # fmt: skip
raw = st.one_of(st.binary(max_size=200), values.map(lambda v: json.dumps(v).encode()), st.sampled_from(
    [b"", b"{", DEEP.encode(), b"\x80\x04\x95\x0b.", b"PK\x03\x04" + bytes(60), b"9" * 5000, b"\xff" * 64, b'{"a":' * 50_000]))  # fmt: skip


class Stuck(BaseException):
    """A case did not end."""


def _stuck(*_: object) -> None:
    raise Stuck


class Readers:
    """One run to spoil, and a method for each reader. What a method raises but Problems is a fault of the program's."""

    def __init__(self, place: Path) -> None:
        from ambidex import plan
        from ambidex.resume import settings_of
        from ambidex.runs import Run

        self.place = place
        self.good = place / "good"
        data = story(place)
        more = {"steps": 4, "save_every": 2}
        typed = words(data, self.good, **more)
        assert to_the_end(command(typed, place / "log.txt")) == 0, (place / "log.txt").read_text()
        self.run = place / "run"
        shutil.copytree(self.good, self.run)
        self.card = Run(self.good).card
        self.wanted = plan.tensors_of(settings_of(self.card), 256)
        self.step = self.run / "checkpoints" / "step-000004"
        self.files = {p.name: p.read_bytes() for p in (self.good / "checkpoints" / "step-000004").iterdir()}

    # -- each takes hypothesis' `data` ---------------------------------------------------------------------------------

    def configuration(self, data: Any) -> None:
        from ambidex import config

        names = st.one_of(st.sampled_from(sorted(config.fields())), text)
        flags = data.draw(st.dictionaries(st.sampled_from(sorted(config.fields())), values, max_size=3))
        given_ = {
            config.variable(n): str(v)
            for n, v in data.draw(
                st.dictionaries(st.sampled_from(sorted(config.fields())), values, max_size=2)
            ).items()
        }
        lines = data.draw(st.one_of(raw, st.lists(st.tuples(names, values), max_size=3).map(
            lambda rows: "\n".join(f"{n} = {json.dumps(v)}" for n, v in rows).encode())))  # fmt: skip
        file = self.place / "mine.toml"
        file.write_bytes(lines)
        config.resolve(
            {n: v if isinstance(v, str | bool) else str(v) for n, v in flags.items()},
            file=file,
            environment=given_,
        )

    def checkpoint(self, data: Any) -> None:
        """A file of a checkpoint is replaced, and the manifest made to agree: the hash must not be what saves us."""
        from ambidex import checkpoint

        name = data.draw(
            st.sampled_from(["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
        )
        content = data.draw(
            self._states()
            if name == "state.json"
            else self._manifests()
            if name == "manifest.json"
            else self._tensors(name)
        )
        self._checkpoint({name: content})
        with contextlib.suppress(checkpoint.Damaged):
            checkpoint.load(self.step, self.wanted)
        with contextlib.suppress(checkpoint.Damaged):
            checkpoint.load(self.step)
        with contextlib.suppress(checkpoint.Damaged):
            checkpoint.check_headers(self.step, self.wanted)

    def run_folder(self, data: Any) -> None:
        """Card, metrics, samples, health and tokenizer, through the commands that read them."""
        from ambidex import cli

        name = data.draw(
            st.sampled_from(
                ["card.json", "metrics.csv", "tokenizer.json", "health.jsonl", "samples.md", "checkpoint"]
            )
        )
        self._whole()
        if name == "checkpoint":
            part = data.draw(st.sampled_from(["model.safetensors", "state.json"]))
            self._checkpoint(
                {part: data.draw(self._states() if part == "state.json" else self._tensors(part))}
            )
        else:
            contents = {
                "card.json": self._cards(),
                "metrics.csv": self._rows(),
                "tokenizer.json": self._tokenizers(),
            }
            (self.run / name).write_bytes(data.draw(contents.get(name, raw)))
        command_ = data.draw(st.sampled_from([["checkpoints", str(self.run)], ["checkpoints", str(self.run), "--json"],
                                              ["sample", str(self.run), "--tokens", "1"], ["compare", str(self.good), str(self.run)],
                                              ["train", "--resume", "--out", str(self.run), "--dry-run", "--device", "cpu", "--data", str(self.place / "story.txt")]]))  # fmt: skip
        code = cli.main(command_)
        assert code in (0, 1, 2, 3, 6), f"exit {code}"

    def trace(self, data: Any) -> None:
        from ambidex.compare import tracefile

        safe = data.draw(st.one_of(raw, self._tensors("model.safetensors")))
        (self.place / "trace.safetensors").write_bytes(safe)
        tracefile.read(self.place / "trace.safetensors")

    def tokenizer(self, data: Any) -> None:
        from ambidex.text import load_tokenizer

        path = self.place / "tokenizer.json"
        path.write_bytes(data.draw(self._tokenizers()))
        made = load_tokenizer(path)
        made.decode(made.encode("to be\n"))

    def text_files(self, data: Any) -> None:
        from ambidex.text.corpus import Corpus

        folder = self.place / "texts"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for number, (suffix, content) in enumerate(data.draw(st.lists(st.tuples(
            st.sampled_from([".txt", ".jsonl", ".txt.gz", ".jsonl.gz", ".parquet", ".gz", ".zip", ".md"]), raw), min_size=1, max_size=4))):  # fmt: skip
            packed = gzip.compress(content) if suffix.endswith(".gz") and number % 2 else content
            (folder / f"{number}{suffix}").write_bytes(packed)
        for number, target in enumerate(
            data.draw(
                st.lists(
                    st.sampled_from(
                        ["0.txt", ".", "..", "nowhere", "/dev/zero", "/dev/full", "/proc/self/mem", "link-0"]
                    ),
                    max_size=2,
                )
            )
        ):
            (folder / f"link-{number}").symlink_to(target if target != ".." else ".")
        given_ = data.draw(st.sampled_from([[str(folder)], [str(p) for p in folder.iterdir()]]))
        for chunk in Corpus(given_, "text", scratch=self.place).text(True):
            assert chunk is not None

    # -- what they are fed -----------------------------------------------------------------------------------------------

    def _checkpoint(self, changed: dict[str, bytes]) -> None:
        from ambidex import checkpoint

        files = {**self.files, **changed}
        if "manifest.json" not in changed:
            listed = {
                n: (len(c), hashlib.sha256(c).hexdigest()) for n, c in files.items() if n != "manifest.json"
            }
            files["manifest.json"] = checkpoint._render_manifest(listed)
        for name, content in files.items():
            (self.step / name).write_bytes(content)

    def _whole(self) -> None:
        self._checkpoint({"manifest.json": self.files["manifest.json"]})
        for path in self.good.iterdir():
            if path.is_file():
                shutil.copyfile(path, self.run / path.name)
        (self.run / "health.jsonl").unlink(missing_ok=True)

    def _tensors(self, name: str) -> st.SearchStrategy[bytes]:
        whole = self.files[name]
        length = int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8 : 8 + length])
        entry = st.fixed_dictionaries({"dtype": st.one_of(st.sampled_from(["F32", "F64", "U8", "F4", "BOOL"]), values),
                                       "shape": st.one_of(st.lists(numbers, max_size=4), values),
                                       "data_offsets": st.one_of(st.lists(numbers, min_size=2, max_size=2), values)})  # fmt: skip

        def spoiled(changes: dict[str, Any]) -> bytes:
            body = json.dumps({**header, **changes}).encode()
            return len(body).to_bytes(8, "little") + body + whole[8 + length :]

        def numbers_of(fill: bytes) -> bytes:
            return whole[: 8 + length] + (fill * (len(whole) // 4))[: len(whole) - 8 - length]

        return st.one_of(
            raw, st.dictionaries(st.one_of(st.sampled_from(sorted(header)), text, odd), entry, max_size=3).map(spoiled),
            st.tuples(numbers.filter(lambda n: isinstance(n, int) and 0 <= n < 2**64), raw).map(lambda p: p[0].to_bytes(8, "little") + p[1]),
            st.sampled_from([b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\0\0\x80\xff", b"\xff\xff\x7f\x7f"]).map(numbers_of),
        )  # fmt: skip

    def _states(self) -> st.SearchStrategy[bytes]:
        state = json.loads(self.files["state.json"])
        return st.one_of(raw, st.dictionaries(st.sampled_from([*state, "other"]), values, max_size=3).map(
            lambda changes: json.dumps({**state, **changes}).encode()))  # fmt: skip

    def _manifests(self) -> st.SearchStrategy[bytes]:
        manifest = json.loads(self.files["manifest.json"])
        return st.one_of(raw, st.dictionaries(st.one_of(odd, st.sampled_from(["files", "format", "sha256"])), values, max_size=2).map(
            lambda changes: json.dumps({**manifest, **changes}).encode()),
            st.dictionaries(st.one_of(odd, st.sampled_from(list(manifest["files"]))), st.fixed_dictionaries({"size": numbers, "sha256": values}), max_size=3).map(
            lambda files: json.dumps({**manifest, "files": {**manifest["files"], **files}}).encode()))  # fmt: skip

    def _cards(self) -> st.SearchStrategy[bytes]:
        inner = st.dictionaries(st.sampled_from(sorted(self.card["config"])), values, max_size=2).map(
            lambda changes: json.dumps({**self.card, "config": {**self.card["config"], **changes}}).encode())  # fmt: skip
        return st.one_of(raw, inner, st.dictionaries(st.sampled_from([*self.card, "other"]), values, max_size=2).map(
            lambda changes: json.dumps({**self.card, **changes}).encode()))  # fmt: skip

    def _rows(self) -> st.SearchStrategy[bytes]:
        head = b"step,tokens,loss,val_loss,lr,grad_norm,seconds,tokens_per_second\n"
        row = st.lists(values.map(str), min_size=7, max_size=9).map(",".join)
        return st.one_of(
            raw,
            st.lists(row, max_size=4).map(lambda rows: head + "\n".join(rows).encode()),
            raw.map(lambda r: head + r),
        )

    def _tokenizers(self) -> st.SearchStrategy[bytes]:
        bpe = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
               "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
               "post_processor": None, "decoder": {"type": "ByteLevel"}}  # fmt: skip
        vocabulary = st.dictionaries(
            st.one_of(text, st.sampled_from(["a", "b", "ab", "Ġ"])), numbers, max_size=5
        )
        merges = st.one_of(
            values, st.lists(st.one_of(st.just("a b"), st.lists(text, max_size=3), text), max_size=4)
        )
        made = st.tuples(vocabulary, merges, values).map(lambda p: json.dumps({**bpe, "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "vocab": p[0], "merges": p[1]}}).encode())  # fmt: skip
        changed = st.dictionaries(st.sampled_from(sorted(bpe)), values, max_size=2).map(
            lambda c: json.dumps({**bpe, **c}).encode()
        )
        char = values.map(lambda v: json.dumps({"kind": "char", "characters": v}).encode())
        return st.one_of(raw, made, changed, char, values.map(lambda v: json.dumps({"kind": v}).encode()))


SHARES = {
    "configuration": 0.2,
    "checkpoint": 0.3,
    "run_folder": 0.15,
    "trace": 0.1,
    "tokenizer": 0.1,
    "text_files": 0.15,
}


def run(place: Path, cases: int = 20_000) -> dict[str, Any]:
    os.environ["COLUMNS"] = "100"
    warm()
    signal.signal(signal.SIGALRM, _stuck)
    readers = Readers(place)
    found: dict[str, Any] = {"cases": {}, "total": 0, "slowest_seconds": 0.0, "most_MB": 0, "broken": [],
                             "bounds": f"{MOST_SECONDS:.0f} s or {MOST_MB} MB"}  # fmt: skip
    for name, share in SHARES.items():
        count = _feed(name, getattr(readers, name), round(cases * share), found)
        found["cases"][name.replace("_", " ")] = count
        found["total"] += count
    return found


def _feed(name: str, read: Callable[[Any], None], cases: int, found: dict[str, Any]) -> int:
    from ambidex.errors import Problems

    count = 0
    # Hypothesis ends a round early where it has seen all that a simple strategy can make: then another begins.
    rounds = 0

    def once(data: Any) -> None:
        nonlocal count
        started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        said = io.StringIO()
        signal.setitimer(signal.ITIMER_REAL, STUCK)
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                read(data)
        except Problems:
            pass
        except Exception:
            if len(found["broken"]) < 40:
                found["broken"].append({"reader": name, "what": traceback.format_exc()[-1500:]})
        except Stuck:
            found["broken"].append({"reader": name, "what": f"no end after {STUCK:.0f} s"})
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if "Traceback" in said.getvalue() or "\x1b" in said.getvalue():
            found["broken"].append({"reader": name, "said": said.getvalue()[-500:]})
        took = time.process_time() - started
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        found["slowest_seconds"] = round(max(found["slowest_seconds"], took), 2)
        found["most_MB"] = max(found["most_MB"], grown)
        if took > MOST_SECONDS or grown > MOST_MB:
            found["broken"].append({"reader": name, "seconds": took, "MB": grown})
        count += 1

    while count < cases and rounds < 50:
        rounds += 1
        test = settings(max_examples=cases - count, deadline=None, database=None, phases=[Phase.generate],
                        suppress_health_check=list(HealthCheck))(seed(rounds)(given(st.data())(once)))  # fmt: skip
        test()
    return count
