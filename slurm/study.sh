#!/bin/bash
# One part of a study, see docs/study.md; `frisket study STUDY.yaml jobs=slurm` submits it three times.
#SBATCH --job-name=study
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=SIGUSR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
source "${SLURM_SUBMIT_DIR:-$PWD}/slurm/env.sh"
[ -z "${SLURM_ARRAY_TASK_ID:-}" ] || set -- "$@" "cell=$SLURM_ARRAY_TASK_ID"
launch frisket study "$@"
