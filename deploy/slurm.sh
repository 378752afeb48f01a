#!/usr/bin/env bash
# One training on several hosts of a Slurm cluster. Not run: checked with bash -n and against sbatch's documented options.
#
#   IMAGE=docker://registry.example/ambidex:cpu sbatch deploy/slurm.sh
#
# RUNS and DATA are folders that the first host sees (RUNS) and that all hosts see (DATA). Repeated, it continues.
#SBATCH --job-name=ambidex
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=ambidex-%j.log
set -euo pipefail

: "${IMAGE:?the image, as apptainer names it}" "${RUNS:=$PWD/runs}" "${DATA:=$PWD/data}"
# torchrun's processes meet on the first host. Each of its processes takes its share of the cores that Slurm gave it.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
processes=${PROCESSES_PER_HOST:-1}

# --signal sends SIGTERM to torchrun two minutes before the end: every process stops after the same step, one saves.
# torchrun by itself would kill them after 30 s, in the middle of a longer step.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100
srun apptainer exec --bind "$RUNS:/runs,$DATA:/data:ro" "$IMAGE" \
  torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$processes" --max-restarts=3 \
  --rdzv-backend=c10d --rdzv-endpoint="$first:29400" --rdzv-id="$SLURM_JOB_ID" \
  -m ambidex train --preset 45m --data builtin --device cpu --save-every 100 --out /runs/45m --resume
