#!/usr/bin/env bash
# BSDS500 -> shards of one split.  data_prep/bsds500.sh FOLDER [train|val|test] [key=value…]   (again to resume)
# FOLDER has images/ and groundTruth/, or is the official one above BSDS500/data. Counts are checked: 200, 100, 200.
set -euo pipefail
[[ $# -gt 0 ]] || { echo "usage: data_prep/bsds500.sh FOLDER [train|val|test] [key=value…] (its first lines explain)" >&2; exit 2; }
folder=${1:-} split=${2:-train}
fail() { echo "data_prep/bsds500.sh: $*" >&2; exit 2; }
[[ -d $folder ]] || fail "'$folder' is not a folder: give the BSDS500 folder first, with images/ and groundTruth/"
case $split in train | test) count=200 ;; val) count=100 ;; *) fail "'$split' is not a split: train, val or test" ;; esac
base=$folder
for inside in BSDS500/data data; do [[ -d $folder/images ]] || { [[ ! -d $folder/$inside ]] || base=$folder/$inside; }; done
for kind in images:jpg groundTruth:mat; do
  found=$(find "$base/${kind%:*}/$split" -maxdepth 1 -name "*.${kind#*:}" 2>/dev/null | wc -l) || true
  [[ $found -eq $count ]] || fail "$base/${kind%:*}/$split holds $found .${kind#*:} files, not $count: unpack BSDS500 again"
done
[[ ! -d .venv/bin ]] || PATH="$PATH:$PWD/.venv/bin"
exec frisket prep configs/prep_bsds500.yaml inputs="$folder" split="$split" out="data/bsds500/$split" "${@:3}"
