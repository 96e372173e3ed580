#!/bin/bash
# A teacher's embeddings and chosen features, stored beside shards: one GPU, or an array of them that share the shards.
#   sbatch --array=0-15 slurm/prep_embed.sh inputs=$FRISKET_DATA/sa1b/train blocks=[11,21,32] dtype=int8
#   LOCAL=1 bash slurm/prep_embed.sh inputs=… place.accelerator=cpu        the same run here, without Slurm
# Sent again it does what is left; a task that was preempted goes on with its next shard.
#SBATCH --job-name=prep_embed
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
source "${SLURM_SUBMIT_DIR:-$PWD}/slurm/env.sh"
launch frisket prep configs/prep_embed.yaml ${SLURM_ARRAY_TASK_ID:+task=$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT} "$@"
