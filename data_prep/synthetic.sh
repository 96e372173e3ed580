#!/usr/bin/env bash
# Drawn scenes -> shards in FOLDER/train.  data_prep/synthetic.sh FOLDER [key=value…]   (again to resume)
set -euo pipefail
[[ $# -gt 0 ]] || { echo "usage: data_prep/synthetic.sh FOLDER [key=value…] (its first lines explain)" >&2; exit 2; }
folder=${1:-}
if [[ ! -d $folder ]]; then
  echo "data_prep/synthetic.sh: '$folder' is not a folder: make it (mkdir -p) and give it first" >&2
  exit 2
fi
[[ ! -d .venv/bin ]] || PATH="$PATH:$PWD/.venv/bin"
exec frisket prep configs/prep_synthetic.yaml out="$folder/train" "${@:2}"
