#!/bin/bash
# A study (docs/study.md): all of it in this job, or one cell of it in each task of an array.
#   frisket study studies/lightening.yaml slurm="--gres=gpu:1"      sends what is prepared, the cells and the table
#   sbatch slurm/study.sh [YAML …] [key=value …]                    without a YAML: configs/studies/lightening.yaml
#SBATCH --job-name=study
#SBATCH --ntasks=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=SIGUSR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
source "${SLURM_SUBMIT_DIR:-$PWD}/slurm/env.sh"
ON=() # a study's place is in its own YAML
[[ "${1:-}" == *.yaml ]] || set -- configs/studies/lightening.yaml "$@"
launch frisket study "$@" ${SLURM_ARRAY_TASK_ID:+cell=$SLURM_ARRAY_TASK_ID}
