#!/usr/bin/env bash
# SA-1B's tars -> shards.  data_prep/sa1b.sh FOLDER [key=value…]   (again to resume)
# As a Slurm array: sbatch --array=0-9 --wrap 'data_prep/sa1b.sh FOLDER task=$SLURM_ARRAY_TASK_ID/10'
set -euo pipefail
folder=${1:-}
if [[ ! -d $folder ]]; then
  echo "data_prep/sa1b.sh: '$folder' is not a folder: give the folder of Meta's sa_*.tar first" >&2
  exit 2
fi
exec frisket prep configs/prep_sa1b.yaml inputs="$folder" "${@:2}"
