#!/bin/bash
# Lite-SAM from nothing: encoder, AutoPPN and decoder together (arXiv 2407.08965). How to start it: slurm/env.sh.
#SBATCH --job-name=train_lite
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=SIGUSR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
source "${SLURM_SUBMIT_DIR:-$PWD}/slurm/env.sh"
launch frisket train configs/train_lite.yaml "$@"
