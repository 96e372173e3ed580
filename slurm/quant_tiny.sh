#!/bin/bash
# TinySAM, post-training quantization: W8A8 on one GPU (arXiv 2312.13789, section 3.2). How to start it: slurm/env.sh.
#SBATCH --job-name=quant_tiny
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=SIGUSR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
source "${SLURM_SUBMIT_DIR:-$PWD}/slurm/env.sh"
launch frisket quant configs/quant_tiny.yaml "$@"
