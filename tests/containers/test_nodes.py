"""Two nodes, each a container, on a private network: one training, whatever happens to a node or to the network."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .engine import TINY, Project, config, docker, good

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

NODES = ("node-0", "node-1")
STEPS = 1500
WORDS = ["--save-every", "20", "--evaluate-every", "100000", "--collective-timeout", "15s", "--seed", "1"]


@pytest.fixture
def network(engine: None) -> None:
    """Where the engine cannot make a network, as in a sandbox without bridges, there are no nodes; in CI that is a failure."""
    made = docker("network", "create", "--internal", "ambidex-test-can-it")
    docker("network", "rm", "ambidex-test-can-it")
    if made.code != 0:
        why = f"this engine makes no networks: {made.text.strip()[:200]}"
        pytest.fail(why, pytrace=False) if os.environ.get("REQUIRE_ENGINE") == "1" else pytest.skip(why)


@pytest.fixture
def nodes(network: None, project: Project) -> Iterator[Project]:
    """The services with a training that takes long enough to be disturbed."""
    words = json.dumps([*TINY, *WORDS, "--steps", str(STEPS)])
    override = project.folder / "nodes.yaml"
    override.write_text(
        f"services: {{node-0: {{command: {words}}}, node-1: {{command: {words}}}}}\n", "utf-8"
    )
    project.settings["COMPOSE_FILE"] = f"compose.yaml:{override}"
    project.settings["CPUS"] = "1"
    yield project
    print(project.compose("logs", "--no-color").text[-20000:])


def started(project: Project) -> Path:
    """As the pages say it, and the two are all that it starts."""
    good(project.compose("--profile", "nodes", "up", "--detach", "--no-build"))
    there = good(project.compose("--profile", "*", "ps", "--all", "--format", "{{.Service}}"))
    assert sorted(there.split()) == sorted(NODES)
    wait(lambda: step(project) >= 60, 180)
    return only(project)


def only(project: Project) -> Path:
    (found,) = (project.runs / "nodes").glob("nano-*")
    return found


def step(project: Project) -> int:
    try:
        with (only(project) / "metrics.csv").open(encoding="utf-8", newline="") as file:
            return max((int(row["step"]) for row in csv.DictReader(file)), default=0)
    except (OSError, ValueError, TypeError):
        return 0


def container(project: Project, node: str) -> str:
    return good(project.compose("--profile", "nodes", "ps", "--all", "--quiet", node)).strip()


def state(project: Project, node: str) -> tuple[str, int]:
    text = good(
        docker("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", container(project, node))
    )
    status, code = text.split()
    return status, int(code)


def wait(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.5)


def ended(project: Project) -> bool:
    return all(state(project, node)[0] == "exited" for node in NODES)


def logs(project: Project) -> str:
    return project.compose("--profile", "nodes", "logs", "--no-color").text


def assert_whole(project: Project) -> None:
    with (only(project) / "metrics.csv").open(encoding="utf-8", newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, STEPS + 1))
    assert json.loads((only(project) / "card.json").read_text("utf-8"))["processes"] == 2


def test_the_nodes_differ_in_their_names_alone_and_their_network_leads_nowhere() -> None:
    found = config("nodes")
    first, second = (found["services"][node] for node in NODES)
    assert {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)} == {"hostname"}
    assert found["networks"]["nodes"]["internal"] is True
    assert not first.get("ports")


def test_torchrun_leaves_a_step_more_time_than_its_own_30_s_and_the_engine_leaves_torchrun_more() -> None:
    for node in NODES:
        service = config("nodes")["services"][node]
        assert service["stop_grace_period"] == "1m30s"
        assert 60 <= int(service["environment"]["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) <= 80


def test_stopped_nodes_save_their_last_step_and_go_on_from_it(nodes: Project) -> None:
    run = started(nodes)
    good(nodes.compose("--profile", "nodes", "stop"))
    stopped_at = step(nodes)
    assert stopped_at < STEPS
    assert max(path.name for path in (run / "checkpoints").iterdir()) == f"step-{stopped_at:06d}", logs(
        nodes
    )[-5000:]
    good(nodes.compose("--profile", "nodes", "up", "--detach", "--no-build"))
    wait(lambda: ended(nodes), 400)
    assert [state(nodes, node)[1] for node in NODES] == [0, 0], logs(nodes)[-5000:]
    assert f"from step {stopped_at}" in logs(nodes)
    assert_whole(nodes)


def test_a_killed_node_comes_back_and_the_run_goes_on_to_its_end(nodes: Project) -> None:
    started(nodes)
    good(docker("kill", "--signal", "KILL", container(nodes, "node-1")))
    before = step(nodes)
    wait(lambda: "lost the others at step" in logs(nodes), 90)
    good(docker("start", container(nodes, "node-1")))
    wait(lambda: ended(nodes), 400)
    assert [state(nodes, node)[1] for node in NODES] == [0, 0], logs(nodes)[-5000:]
    assert "from the last checkpoint" in logs(nodes)
    assert before < STEPS
    assert_whole(nodes)


def test_twenty_seconds_without_a_network_are_survived_or_end_in_a_sentence_but_never_hang(
    nodes: Project,
) -> None:
    started(nodes)
    (name,) = json.loads(
        good(docker("inspect", "--format", "{{json .NetworkSettings.Networks}}", container(nodes, "node-1")))
    )
    good(docker("network", "disconnect", "--force", name, container(nodes, "node-1")))
    time.sleep(20)
    good(docker("network", "connect", "--alias", "node-1", name, container(nodes, "node-1")))
    wait(lambda: ended(nodes), 500)
    codes = [state(nodes, node)[1] for node in NODES]
    if codes == [0, 0]:
        assert_whole(nodes)
    assert "lost the others at step" in logs(nodes)
