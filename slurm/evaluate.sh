#!/bin/bash
# Judge checkpoints: frisket eval, on one GPU or on as many as sbatch is told to take (--nodes, --ntasks-per-node, --gres).
#   sbatch slurm/evaluate.sh [YAML] [key=value …]          without a YAML: configs/eval_miou.yaml
#   LOCAL=1 bash slurm/evaluate.sh configs/eval_all.yaml … the same run here, without Slurm
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
[[ "${1:-}" == *.yaml ]] || set -- configs/eval_miou.yaml "$@" # another task's YAML stands for itself
launch frisket eval "$@"
