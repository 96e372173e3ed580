#!/bin/bash
# Judge a checkpoint: frisket eval on one GPU.
#   sbatch slurm/evaluate.sh [YAML …] [key=value …]        FRISKET_ON=a100 adds that preset
#   LOCAL=1 bash slurm/evaluate.sh                         the same run here, without Slurm
#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
source "${SLURM_SUBMIT_DIR:-$PWD}/slurm/env.sh"
launch frisket eval configs/eval_miou.yaml "$@"
