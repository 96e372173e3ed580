#!/usr/bin/env bash
# BSDS500 -> shards of one split.  data_prep/bsds500.sh FOLDER [train|val] [key=value…]   (again to resume)
set -euo pipefail
folder=${1:-} split=${2:-train}
if [[ ! -d $folder ]]; then
  echo "data_prep/bsds500.sh: '$folder' is not a folder: give the BSDS500 folder first, with images/ and groundTruth/" >&2
  exit 2
fi
exec frisket prep configs/prep_bsds500.yaml inputs="$folder" split="$split" out="data/bsds500/$split" "${@:3}"
