import errno
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ambidex import checkpoint
from ambidex.checkpoint import Checkpoint, Damaged
from ambidex.errors import Problems

FILES = (checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.STATE, checkpoint.MANIFEST)


def some(step: int) -> Checkpoint:
    weight = torch.arange(6, dtype=torch.float32).view(2, 3) + step
    return Checkpoint(step, {"w": weight}, {"exp_avg.w": weight * 2}, {"seconds": 1.5})


def test_what_was_saved_is_loaded_bit_for_bit(tmp_path):
    folder = checkpoint.save(tmp_path, some(7))
    loaded = checkpoint.load(folder)
    assert folder.name == "step-000007"
    assert torch.equal(loaded.model["w"], some(7).model["w"])
    assert torch.equal(loaded.optimizer["exp_avg.w"], some(7).optimizer["exp_avg.w"])
    assert loaded.state["seconds"] == 1.5


def test_the_manifest_holds_size_and_hash_of_each_file(tmp_path):
    import hashlib

    folder = checkpoint.save(tmp_path, some(1))
    files = json.loads((folder / checkpoint.MANIFEST).read_text())["files"]
    assert set(files) == set(FILES) - {checkpoint.MANIFEST}
    for name, entry in files.items():
        content = (folder / name).read_bytes()
        assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_found(tmp_path, file, place, bit):
    folder = checkpoint.save(tmp_path / "pristine", some(3))
    content = bytearray((folder / file).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    (folder / file).write_bytes(content)
    with pytest.raises(Damaged):
        checkpoint.load(folder)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", ["missing", "empty", "cut", "longer", "swapped"])
def test_a_missing_cut_or_swapped_file_is_found(tmp_path, file, harm):
    folder = checkpoint.save(tmp_path, some(3))
    path = folder / file
    content = path.read_bytes()
    other = checkpoint.MODEL if file != checkpoint.MODEL else checkpoint.OPTIMIZER
    harms = {"missing": None, "empty": b"", "cut": content[:-1], "longer": content + b"\0",
             "swapped": (folder / other).read_bytes()}  # fmt: skip
    path.unlink()
    if harms[harm] is not None:
        path.write_bytes(harms[harm])
    with pytest.raises(Damaged, match=file):
        checkpoint.load(folder)


def test_the_newest_good_one_is_taken_and_what_is_passed_over_is_named(tmp_path):
    for step in (20, 40, 60):
        checkpoint.save(tmp_path, some(step))
    damaged = tmp_path / "step-000060" / checkpoint.MODEL
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    found = checkpoint.newest_good(tmp_path)
    assert found.checkpoint is not None
    assert found.checkpoint.step == 40
    assert found.skipped == ("skipped step-000060: model.safetensors: sha256 mismatch",)


def test_a_folder_renamed_to_another_step_is_not_believed(tmp_path):
    checkpoint.save(tmp_path, some(3)).rename(tmp_path / "step-000009")
    with pytest.raises(Damaged, match="step 3"):
        checkpoint.load(tmp_path / "step-000009")


def test_an_unfinished_folder_is_not_seen_and_is_cleared(tmp_path):
    checkpoint.save(tmp_path, some(3))
    shutil.copytree(tmp_path / "step-000003", tmp_path / ".step-000004.99")
    assert checkpoint.steps_in(tmp_path) == [3]
    checkpoint.clear_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000003"]


class KillError(BaseException):
    """Stands for a SIGKILL: nothing after it runs, not even an `except OSError`."""


@pytest.mark.parametrize("at", range(30))
def test_a_kill_at_any_system_call_of_a_save_leaves_the_old_checkpoint_or_the_new_one(
    tmp_path, monkeypatch, at
):
    checkpoint.save(tmp_path, some(1))
    calls = iter(range(1000))

    def killing(function):
        def called(*arguments, **options):
            if next(calls) == at:
                raise KillError
            return function(*arguments, **options)

        return called

    monkeypatch.setattr(os, "fsync", killing(os.fsync))
    for name in ("mkdir", "rename", "open"):
        monkeypatch.setattr(Path, name, killing(getattr(Path, name)))
    died = False
    try:
        checkpoint.save(tmp_path, some(2))
    except KillError:
        died = True
    monkeypatch.undo()
    assert died or at > 10, "the save makes at least ten such calls"
    found = checkpoint.newest_good(tmp_path)
    assert found.checkpoint is not None
    assert found.checkpoint.step in ((1, 2) if died else (2,))
    assert found.skipped == ()
    checkpoint.save(tmp_path, some(3))
    assert checkpoint.load(tmp_path / "step-000003").step == 3


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path):
    folder = checkpoint.save(tmp_path, some(5))
    (folder / checkpoint.MODEL).write_bytes(b"")
    checkpoint.save(tmp_path, some(5))
    assert checkpoint.load(folder).step == 5
    assert [path.name for path in tmp_path.iterdir()] == ["step-000005"]


def test_the_newest_few_and_the_best_are_kept(tmp_path):
    for step in range(1, 7):
        checkpoint.save(tmp_path, some(step))
    checkpoint.keep_only(tmp_path, newest=2, best=3)
    assert checkpoint.steps_in(tmp_path) == [3, 5, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000003", "step-000005", "step-000006"]


def test_a_full_disk_ends_in_exit_code_4_and_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, some(1))

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_synced", full)
    with pytest.raises(Problems, match="No space left") as caught:
        checkpoint.save(tmp_path, some(2))
    assert caught.value.exit_code == 4
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_a_pickle_under_our_name_is_refused_unread(tmp_path):
    import hashlib
    import pickle

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    folder = checkpoint.save(tmp_path, some(3))
    bomb = pickle.dumps({"w": Bomb()})
    files = {name: (folder / name).read_bytes() for name in FILES[:3]} | {checkpoint.MODEL: bomb}
    (folder / checkpoint.MODEL).write_bytes(bomb)
    (folder / checkpoint.MANIFEST).write_bytes(
        checkpoint._render_manifest({n: (len(c), hashlib.sha256(c).hexdigest()) for n, c in files.items()})
    )
    with pytest.raises(Damaged, match="cannot be understood"):
        checkpoint.load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("refusal", "saved"), [(errno.EINVAL, True), (errno.EBADF, True), (errno.EIO, False)]
)
@pytest.mark.skipif(os.name == "nt", reason="Windows syncs no folders")
def test_a_file_system_that_cannot_sync_folders_holds_checkpoints_and_a_failing_disk_does_not(
    tmp_path, monkeypatch, refusal, saved
):
    sync = os.fsync

    def refused(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(refusal, os.strerror(refusal))
        sync(handle)

    monkeypatch.setattr(os, "fsync", refused)
    if saved:
        assert checkpoint.load(checkpoint.save(tmp_path, some(1))).step == 1
    else:
        with pytest.raises(Problems):
            checkpoint.save(tmp_path, some(1))
