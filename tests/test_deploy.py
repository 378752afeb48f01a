"""deploy/ against the parsers and schemas of what it is for. It was not run: there is no cluster here."""

# ruff: noqa: N815  the names are Kubernetes's own
from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from ambidex import config, flags

yaml = pytest.importorskip("yaml")
DEPLOY = Path(__file__).parents[1] / "deploy"

# sbatch's long options and the form of their values, as https://slurm.schedmd.com/sbatch.html has them.
SBATCH = {
    "job-name": r"\S+", "nodes": r"\d+(-\d+)?", "ntasks-per-node": r"\d+", "cpus-per-task": r"\d+", "mem": r"\d+[KMGT]?",
    "time": r"(\d+-)?\d+(:\d\d){0,2}", "signal": r"([BR]{1,2}:)?(\d+|[A-Z0-9]+)(@\d+)?", "requeue": "", "open-mode": "append|truncate",
    "output": r"\S+", "error": r"\S+", "partition": r"\S+", "gpus-per-node": r"(\w+:)?\d+", "exclusive": "",
}  # fmt: skip


def directives(text: str) -> dict[str, str]:
    """sbatch reads them up to the first line that is neither blank nor a comment."""
    found = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            break
        if line.startswith("#SBATCH "):
            name, _, value = line.removeprefix("#SBATCH --").partition("=")
            found[name] = value
    return found


def command(text: str) -> list[str]:
    """The words of `srun ...`, continued lines joined."""
    (line,) = re.findall(r"^srun (.*)$", text.replace("\\\n", " "), re.MULTILINE)
    return shlex.split(line)


def settings(words: list[str]) -> config.Settings:
    typed, file, unknown = flags.train_flags(words)
    return config.resolve(typed, file=file, unknown_flags=unknown, environment={}).settings


def after(words: list[str], *what: str) -> list[str]:
    places = [n for n in range(len(words)) if words[n : n + len(what)] == list(what)]
    assert len(places) == 1, words
    return words[places[0] + len(what) :]


def test_the_slurm_script_is_bash_and_each_directive_is_one_of_sbatchs() -> None:
    script = DEPLOY / "slurm.sh"
    if shutil.which("bash"):
        subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text("utf-8")
    found = directives(text)
    assert text.startswith("#!")
    assert len(found) == text.count("\n#SBATCH ") >= 8
    for name, value in found.items():
        assert re.fullmatch(SBATCH[name], value), (name, value)
    assert found["ntasks-per-node"] == "1", "torchrun starts the processes of a host, not srun"
    assert found["signal"].startswith("TERM@"), "without B: it goes to torchrun, which passes it on"


def test_slurm_and_kubernetes_start_the_same_training_with_flags_that_there_are() -> None:
    slurm = command((DEPLOY / "slurm.sh").read_text("utf-8"))
    trainer = yaml.safe_load((DEPLOY / "kubernetes.yaml").read_text("utf-8"))["spec"]["trainer"]
    pods = [*trainer["command"], *trainer["args"]]
    one, other = (settings(after(words, "-m", "ambidex", "train")) for words in (slurm, pods))
    assert one == other
    assert one.resume
    assert one.out
    assert one.save_every
    for words in (slurm, pods):
        launcher = words[words.index("torchrun") : words.index("-m")]
        assert "--max-restarts=3" in launcher


def test_torchrun_waits_for_a_long_step_but_not_beyond_the_time_that_slurm_leaves() -> None:
    script = (DEPLOY / "slurm.sh").read_text("utf-8")
    waits, leaves = (
        int(re.search(words, script)[1]) for words in (r"SHUTDOWN_TIMEOUT=(\d+)", r"--signal=TERM@(\d+)")
    )  # type: ignore[index]
    assert 30 < waits <= leaves - 10


def test_torchrun_itself_takes_the_slurm_scripts_words() -> None:
    run = pytest.importorskip("torch.distributed.run")
    words = after(command((DEPLOY / "slurm.sh").read_text("utf-8")), "torchrun")
    known = {"$SLURM_JOB_NUM_NODES": "2", "$processes": "1", "$first": "host", "$SLURM_JOB_ID": "7"}
    for name, value in known.items():
        words = [word.replace(name, value) for word in words]
    parsed = run.parse_args(words)
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.rdzv_endpoint) == ("2", "1", "host:29400")
    assert parsed.module
    assert parsed.training_script == "ambidex"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Named(Strict):
    name: str = Field(min_length=1, max_length=253)


class Variable(Named):
    value: str = ""


class Resources(Strict):
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}


class Trainer(Strict):
    image: str | None = Field(None, max_length=500)
    command: list[str] = Field([], max_length=128)
    args: list[str] = Field([], max_length=128)
    env: list[Variable] = Field([], max_length=128)
    numNodes: int | None = Field(None, ge=1)
    numProcPerNode: int | None = Field(None, ge=1)
    resourcesPerNode: Resources | None = None


class Mount(Named):
    mountPath: str
    readOnly: bool = False


class Claim(Strict):
    claimName: str


class Volume(Named):
    persistentVolumeClaim: Claim


class Container(Named):
    volumeMounts: list[Mount] = Field([], max_length=128)


class Pod(Strict):
    volumes: list[Volume] = Field([], max_length=128)
    containers: list[Container] = Field([], max_length=64)


class PodTemplate(Strict):
    spec: Pod


class Job(Strict):
    template: PodTemplate


class JobTemplate(Strict):
    spec: Job


class ReplicatedJob(Strict):
    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=253)
    template: JobTemplate


class JobSet(Strict):
    replicatedJobs: list[ReplicatedJob] = Field(max_length=100)


class JobSetTemplate(Strict):
    spec: JobSet


class RuntimeSpec(Strict):
    template: JobSetTemplate


class Patch(Strict):
    manager: str = Field(min_length=1, max_length=253)
    trainingRuntimeSpec: RuntimeSpec


class RuntimeRef(Named):
    apiGroup: str = "trainer.kubeflow.org"
    kind: Literal["ClusterTrainingRuntime", "TrainingRuntime"] = "ClusterTrainingRuntime"


class Spec(Strict):
    runtimeRef: RuntimeRef
    trainer: Trainer
    runtimePatches: list[Patch] = Field([], max_length=16)
    suspend: bool = False


class Metadata(Strict):
    name: str = Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=63)


class TrainJob(Strict):
    """The part of Kubeflow Trainer's TrainJob that is used here; a field that it does not have is an error."""

    apiVersion: Literal["trainer.kubeflow.org/v1alpha1"]
    kind: Literal["TrainJob"]
    metadata: Metadata
    spec: Spec


def manifest() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "kubernetes.yaml").read_text("utf-8"))


def test_the_manifest_is_a_trainjob_and_what_it_mounts_it_also_brings() -> None:
    job = TrainJob.model_validate(manifest())
    (patched,) = job.spec.runtimePatches[0].trainingRuntimeSpec.template.spec.replicatedJobs
    assert patched.name == "node", "the runtime's name of the job that trains, and of its container"
    pod = patched.template.spec.template.spec
    assert [container.name for container in pod.containers] == ["node"]
    assert {m.name for c in pod.containers for m in c.volumeMounts} == {v.name for v in pod.volumes}


@pytest.mark.parametrize(
    "change", [lambda m: m["spec"].update(podTemplateOverrides=[]), lambda m: m["spec"]["trainer"].update(numNodes="2"),
               lambda m: m["metadata"].update(name="Ambidex")]
)  # fmt: skip
def test_the_schema_refuses_what_the_cluster_would(change: Any) -> None:
    wrong = manifest()
    change(wrong)
    with pytest.raises(ValueError, match="validation error"):
        TrainJob.model_validate(wrong)
