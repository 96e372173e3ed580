#!/bin/bash
# SAM-Lightening, stage 2: align the mask decoder with the distilled encoder.
#   sbatch slurm/finetune_decoder.sh [YAML …] [key=value …]        submit it again to go on; FRISKET_ON=a100 adds that preset
#   LOCAL=1 bash slurm/finetune_decoder.sh                         the same run here, without Slurm
#SBATCH --job-name=finetune_decoder
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=SIGUSR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
source "${SLURM_SUBMIT_DIR:-$PWD}/slurm/env.sh"
launch frisket train configs/finetune_decoder.yaml "${ON[@]}" "$@"
