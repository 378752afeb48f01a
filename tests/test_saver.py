"""Saving beside training: what is saved is what the weights were, and a failure is said and does no harm."""

import threading

import pytest
import torch

from ambidex import checkpoint
from ambidex.checkpoint import Checkpoint
from ambidex.errors import Problem, Problems
from ambidex.saver import Saver


def some(step: int, tensor: torch.Tensor) -> Checkpoint:
    return Checkpoint(step, {"w": tensor}, {"exp_avg.w": tensor}, {"seconds": 1.0})


@pytest.fixture
def told():
    return []


def saver(folder, told, **options) -> Saver:
    return Saver(folder, options.pop("keep", 2), tell=lambda word, text: told.append(word + text), **options)


def test_a_step_taken_while_the_writer_writes_is_not_in_the_checkpoint(tmp_path, told):
    weights, go = torch.zeros(8), threading.Event()
    with saver(tmp_path, told, before_it_appears=lambda: go.wait(30) and None) as saving:
        saving.save(some(1, weights), None)
        weights += 1  # training goes on
        assert checkpoint.steps_in(tmp_path) == []
        go.set()
        saving.finish()
    assert torch.equal(checkpoint.load(tmp_path / "step-000001").model["w"], torch.zeros(8))


def test_without_memory_for_a_copy_it_is_written_at_once(tmp_path, told):
    with saver(tmp_path, told, free_bytes=lambda: 1) as saving:
        saving.save(some(1, torch.zeros(8)), None)
        assert checkpoint.load(tmp_path / "step-000001").step == 1


def failing(monkeypatch, steps):
    real = checkpoint.save

    def save(folder, saved, before=lambda: None):
        if saved.step in steps:
            steps[saved.step] -= 1
            if steps[saved.step] >= 0:
                raise Problems(Problem("The checkpoint could not be written.", found="disk full"), 4)
        return real(folder, saved, before)

    monkeypatch.setattr(checkpoint, "save", save)


def test_a_failed_save_is_loud_and_training_goes_on_while_an_older_one_is_good(tmp_path, told, monkeypatch):
    failing(monkeypatch, {2: 1})
    with saver(tmp_path, told) as saving:
        for step in (1, 2, 3):
            saving.save(some(step, torch.zeros(2)), None)
        saving.finish()
    assert checkpoint.steps_in(tmp_path) == [1, 3]
    assert any("NOT SAVED" in line and "disk full" in line for line in told)
    assert any("step-000001 is good" in line for line in told)


def test_a_failed_save_with_no_good_one_before_it_ends_in_4(tmp_path, told, monkeypatch):
    failing(monkeypatch, {1: 9})
    with saver(tmp_path, told) as saving:
        saving.save(some(1, torch.zeros(2)), None)
        with pytest.raises(Problems, match="disk full") as caught:
            saving.save(some(2, torch.zeros(2)), None)
    assert caught.value.exit_code == 4


def test_a_damaged_older_one_counts_as_none(tmp_path, told, monkeypatch):
    failing(monkeypatch, {2: 9})
    with saver(tmp_path, told) as saving:
        saving.save(some(1, torch.zeros(2)), None)
        saving.poll(waiting=True)
        (tmp_path / "step-000001" / "state.json").write_bytes(b"{}")
        saving.save(some(2, torch.zeros(2)), None)
        with pytest.raises(Problems):
            saving.poll(waiting=True)


@pytest.mark.parametrize(("failures", "exit_code"), [(1, None), (2, 4)])
def test_the_last_save_is_tried_twice_and_then_an_error(tmp_path, told, monkeypatch, failures, exit_code):
    failing(monkeypatch, {2: failures})
    with saver(tmp_path, told) as saving:
        saving.save(some(1, torch.zeros(2)), None)
        saving.save(some(2, torch.zeros(2)), None)
        if exit_code is None:
            saving.finish()
        else:
            with pytest.raises(Problems, match="step-000001 is good") as caught:
                saving.finish()
            assert caught.value.exit_code == exit_code
    assert checkpoint.steps_in(tmp_path) == ([1, 2] if exit_code is None else [1])


def test_weights_that_are_not_finite_are_not_saved(tmp_path, told):
    with saver(tmp_path, told) as saving, pytest.raises(Problems) as caught:
        saving.save(some(1, torch.tensor([1.0, float("nan")])), None)
    assert caught.value.exit_code == 5
    assert checkpoint.steps_in(tmp_path) == []


def test_with_keep_1_a_damaged_newer_one_does_not_cost_the_one_just_saved(tmp_path, told):
    checkpoint.save(tmp_path, some(60, torch.zeros(2)))
    (tmp_path / "step-000060" / "state.json").write_bytes(b"")
    with saver(tmp_path, told, keep=1) as saving:
        for step in (40, 50):
            saving.save(some(step, torch.zeros(2)), None)
        saving.finish()
    assert checkpoint.newest_good(tmp_path).folder == tmp_path / "step-000050"
    assert checkpoint.steps_in(tmp_path) == [50, 60]


def test_what_the_disk_gives_back_is_compared_before_it_appears(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, some(1, torch.zeros(2)))
    real = checkpoint.sync_file

    def rotting(file):
        real(file)
        file.seek(20)
        file.write(b"?")
        file.flush()

    monkeypatch.setattr(checkpoint, "sync_file", rotting)
    with pytest.raises(Problems, match="does not read back"):
        checkpoint.save(tmp_path, some(2, torch.zeros(2)))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_the_last_save_without_memory_for_a_copy_is_an_error_too_if_it_fails(tmp_path, told, monkeypatch):
    failing(monkeypatch, {2: 9})
    with saver(tmp_path, told, free_bytes=lambda: 1) as saving:
        saving.save(some(1, torch.zeros(2)), None)
        saving.save(some(2, torch.zeros(2)), None)
        with pytest.raises(Problems, match="step-000001 is good") as caught:
            saving.finish()
    assert caught.value.exit_code == 4


def test_a_folder_that_cannot_be_tidied_is_no_reason_to_stop(tmp_path, told, monkeypatch):
    def refused(*arguments, **options):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoint.Path, "glob", refused)
    with saver(tmp_path, told) as saving:
        saving.save(some(1, torch.zeros(2)), None)
        saving.finish()
    assert checkpoint.steps_in(tmp_path) == [1]
