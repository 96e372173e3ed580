#!/usr/bin/env bash
# Checks COCO val2017 and says how to judge on it; nothing is converted.  data_prep/coco.sh FOLDER
# FOLDER holds val2017/ (5,000 photographs) and annotations/instances_val2017.json (36,781 objects), from cocodataset.org.
set -euo pipefail
[[ $# -gt 0 ]] || { echo "usage: data_prep/coco.sh FOLDER (its first lines explain)" >&2; exit 2; }
folder=${1:-}
fail() { echo "data_prep/coco.sh: $*" >&2; exit 2; }
[[ -d $folder ]] || fail "'$folder' is not a folder: give the folder that holds val2017/ and annotations/ first"
notes=$folder/annotations/instances_val2017.json
[[ -f $notes ]] || fail "$notes is not there: unpack annotations_trainval2017.zip in $folder"
[[ -d $folder/val2017 ]] || fail "$folder/val2017 is not there: unpack val2017.zip in $folder"
found=$(find "$folder/val2017" -maxdepth 1 -name '*.jpg' | wc -l)
[[ $found -eq 5000 ]] || fail "$folder/val2017 holds $found photographs, not 5000: unpack val2017.zip again"
found=$({ grep -o '"iscrowd"' "$notes" || true; } | wc -l)
[[ $found -eq 36781 ]] || fail "$notes holds $found objects, not 36781: unpack annotations_trainval2017.zip again"
echo "COCO val2017 is complete. Next: frisket eval configs/eval_instance.yaml data=$notes images=$folder/val2017 …"
