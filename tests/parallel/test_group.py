"""What the processes of a training are told and told apart by, without starting any."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ambidex import launch
from ambidex import stops as stops_module
from ambidex.compare.fingerprint import Sketch, fingerprint
from ambidex.device.choose import Choice
from ambidex.device.machine import Cpu
from ambidex.errors import Problems
from ambidex.parallel import meeting
from ambidex.parallel.gradients import SharedGradientSum, _parts
from ambidex.parallel.group import Group
from ambidex.parallel.place import Place
from ambidex.settings import Settings
from ambidex.stops import Stops

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "host",
            "MASTER_PORT": "1234", "TORCHELASTIC_RESTART_COUNT": "2"}  # fmt: skip


def test_a_place_is_read_from_torchruns_variables_and_is_alone_without_them() -> None:
    assert Place.of(TORCHRUN) == Place(3, 4, 1, 2, 2)
    assert not Place.of(TORCHRUN).writes
    assert Place.of({}) == Place(0, 1, 0, 1, 0)
    assert Place.of({"RANK": "5"}) == Place()  # another program's variable, by itself


@pytest.mark.parametrize(
    "wrong",
    [
        {"RANK": "4"},
        {"WORLD_SIZE": "x"},
        {"LOCAL_RANK": "2"},
        {"MASTER_ADDR": ""},
        {"MASTER_PORT": ""},
        {"MASTER_PORT": "x"},
        {"RANK": "-1"},
        {"RANK": "²"},
    ],
)
def test_variables_that_contradict_each_other_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(Problems, match="torchrun"):
        Place.of({**TORCHRUN, **wrong})


@given(st.integers(1, 64), st.integers(0, 200))
def test_every_row_and_every_turn_is_taken_once_by_shares_that_differ_by_one_at_most(
    size: int, more: int
) -> None:
    groups = [Group(Place(rank, size)) for rank in range(size)]
    rows = [np.arange(size + more)[group.rows(size + more)] for group in groups]
    assert np.concatenate(rows).tolist() == list(range(size + more))
    assert {len(share) for share in rows} <= {(size + more) // size, groups[0].most_rows(size + more)}
    turns = [list(group.turns(range(more))) for group in groups]
    assert sorted(number for taken in turns for number in taken) == list(range(more))


@pytest.mark.parametrize(("local_size", "threads"), [(1, 6), (2, 3), (4, 1), (8, 1)])
def test_the_cores_within_the_quota_are_shared_out_whatever_torchrun_sets(
    monkeypatch: pytest.MonkeyPatch, local_size: int, threads: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(launch.processor, "look", lambda: Cpu("a chip", cores=8, affinity=16, quota=6.5))
    place = Place(0, local_size, 0, local_size)
    before = torch.get_num_threads()
    try:
        device = launch.prepare_device(Choice("cpu", "a test"), Settings(precision="fp32"), {}, place)
        assert device.threads == torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_each_process_of_a_host_has_its_own_gpu_and_none_is_shared() -> None:
    second = Place(1, 2, 1, 2)
    assert second.own_device("cuda:0", "auto") == second.own_device("cuda:0", "cuda") == "cuda:1"
    assert second.own_device("cpu", "auto") == "cpu"
    assert Place().own_device("cuda:3", "cuda:3") == "cuda:3"
    assert Place(1, 2, 0, 1).own_device("cuda:3", "cuda:3") == "cuda:3"  # one process a host
    for chosen, asked in (("cuda:0", "cuda:0"), ("mps", "auto")):
        with pytest.raises(Problems, match="share"):
            second.own_device(chosen, asked)


def test_more_processes_than_sequences_are_refused() -> None:
    with pytest.raises(Problems, match="more processes than sequences"):
        launch.share(Settings(batch_size=3, micro_batch_size=0), Group(Place(0, 4)))
    assert launch.share(Settings(batch_size=5, micro_batch_size=0), Group(Place(0, 4))).batch_size == 2


def test_only_one_process_prints(capfd: pytest.CaptureFixture[str]) -> None:
    for rank in (0, 1):
        with Place(rank, 2).one_voice():
            print("said by", rank)
    assert capfd.readouterr().out == "said by 0\n"


def test_a_stop_that_others_were_asked_for_is_heard_without_counting_as_a_second_signal() -> None:
    stops = Stops()
    assert not stops.heard()
    assert stops.heard(lambda mine: max(mine, 143))
    assert (stops.asked, stops.agreed) == (None, 143)


def test_processes_meet_although_the_store_still_holds_an_earlier_meeting() -> None:
    store = dist.HashStore()
    names = []
    for attempt in range(3):
        places = [Place(rank, 3) for rank in range(3)]
        with ThreadPoolExecutor(3) as pool:
            late = threading.Timer(0.1, lambda: None)
            late.start()
            ends = 1e9 + attempt
            others = [
                pool.submit(meeting._enter, store, place, f"{attempt}-{place.rank}", ends)
                for place in places[1:]
            ]
            late.join()
            first = pool.submit(meeting._open, store, places[0], f"{attempt}-0", ends)
            names.append({one.result(timeout=20) for one in (first, *others)})
    assert names == [{"0-0"}, {"1-0"}, {"2-0"}]


def test_a_process_that_does_not_come_is_named() -> None:
    with pytest.raises(RuntimeError, match="rank 1, 2 did not come"):
        meeting._open(dist.HashStore(), Place(0, 3), "a", 0.0)
    with pytest.raises(RuntimeError, match="rank 0 did not come"):
        meeting._enter(dist.HashStore(), Place(1, 3), "b", 0.0)


class Doubled:
    """Stands for two processes that made the same gradients; counts what is sent."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    def __call__(self, numbers: torch.Tensor) -> Doubled:
        self.sent.append(numbers.numel())
        numbers.mul_(2)
        return self

    def wait(self) -> None: ...


@pytest.mark.parametrize("passes", [1, 3])
def test_each_gradient_is_sent_once_a_step_however_many_passes_made_it(passes: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 600), nn.Linear(600, 600), nn.LayerNorm(600), nn.Linear(600, 4))
    doubled = Doubled()
    total = SharedGradientSum(doubled, model)
    x = torch.randn(5, 8)
    for _ in range(2):
        model.zero_grad()
        doubled.sent.clear()
        with total.over(passes):
            for _ in range(passes):
                model(x).sum().backward()
        found = [weight.grad.clone() for weight in model.parameters()]
        assert sum(doubled.sent) == sum(weight.numel() for weight in model.parameters())
        model.zero_grad()
        model(x).sum().backward()
        for gradient, weight in zip(found, model.parameters()):
            assert torch.allclose(gradient, 2 * passes * weight.grad, rtol=1e-5, atol=1e-5)


def test_large_gradients_go_by_themselves_and_small_ones_together() -> None:
    sizes = [10, 1 << 20, 20, 30, 1 << 19]
    weights = [nn.Parameter(torch.zeros(size)) for size in sizes]
    assert [[w.numel() for w in part] for part in _parts(weights)] == [[1 << 19], [1 << 20], [30, 20, 10]]


def test_a_gradient_that_only_others_have_is_nothing_here() -> None:
    model = nn.Linear(2, 2)
    total = SharedGradientSum(Doubled(), model)
    with total.over(1):
        pass
    assert torch.equal(model.weight.grad, torch.zeros(2, 2))


@given(st.integers(1, 5), st.integers(1, 40))
def test_the_fingerprint_of_parts_held_by_processes_is_that_of_the_whole(size: int, rows: int) -> None:
    values = np.random.default_rng(rows).normal(size=(size + rows, 7))
    parts = []
    for rank in range(size):
        share = Group(Place(rank, size)).rows(len(values))
        sketch = Sketch()
        sketch.add(values[share], share.start * 7)
        parts.append(sketch.numbers())
    found, wanted = Sketch.of_parts(np.stack(parts)).fingerprint(), fingerprint(values)
    assert np.allclose(found.sums, wanted.sums, rtol=1e-12, atol=1e-12)
    assert np.allclose(found.statistics(), wanted.statistics(), rtol=1e-12)


def test_a_signal_that_comes_twice_at_once_through_the_launcher_is_one(monkeypatch) -> None:
    ended = []
    monkeypatch.setattr("os._exit", ended.append)
    clock = [100.0]
    monkeypatch.setattr(stops_module.time, "monotonic", lambda: clock[0])
    stops = Stops(echo=3.0)
    stops.listening = True
    stops._receive(signal.SIGTERM, None)  # Slurm or systemd signals every process of a job
    clock[0] += 0.3
    stops._receive(signal.SIGTERM, None)  # and torchrun passes on what it has got itself
    assert (stops.asked, ended) == (143, [])
    clock[0] += 3.0
    stops._receive(signal.SIGTERM, None)
    assert ended == [143]
