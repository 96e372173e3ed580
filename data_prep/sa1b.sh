#!/usr/bin/env bash
# SA-1B's tars -> shards.  data_prep/sa1b.sh TARS|LINKS [key=value…]   (again to resume)
# TARS: the folder of Meta's sa_*.tar, or a quoted glob or brace pattern, so that some can be held out:
#   data_prep/sa1b.sh '/data/sa1b/sa_0000{00..09}.tar' split=val out=data/sa1b/val
# LINKS: Meta's list (.txt, .tsv) of names and links; its tars are downloaded first, into tars= (usual: beside the list):
#   data_prep/sa1b.sh links.txt tars=/data/sa1b only='sa_0000{00..09}.tar' split=val out=data/sa1b/val
#   Links expire: the same command with a new list goes on.
# As a Slurm array: sbatch --array=0-9 --wrap 'data_prep/sa1b.sh LINKS task=$SLURM_ARRAY_TASK_ID/10'
set -euo pipefail
[[ $# -gt 0 ]] || { echo "usage: data_prep/sa1b.sh TARS|LINKS [key=value…] (its first lines explain)" >&2; exit 2; }
tars=${1:-}
if [[ ! -d $tars && ! $tars =~ \.(tar|txt|tsv)$ ]]; then
  echo "data_prep/sa1b.sh: '$tars' is not a folder: give the folder of Meta's sa_*.tar, a pattern of them, or the list of links, first" >&2
  exit 2
fi
[[ ! -d .venv/bin ]] || PATH="$PATH:$PWD/.venv/bin"
exec frisket prep configs/prep_sa1b.yaml inputs="$tars" "${@:2}"
