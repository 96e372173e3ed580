#!/usr/bin/env bash
# Checks LVIS v1 val and says how to judge on it; nothing is converted.  data_prep/lvis.sh FOLDER
# FOLDER holds lvis_v1_val.json (19,809 images, 244,707 objects; lvisdataset.org) beside COCO's train2017/ and val2017/,
# in both of which its photographs lie.
set -euo pipefail
[[ $# -gt 0 ]] || { echo "usage: data_prep/lvis.sh FOLDER (its first lines explain)" >&2; exit 2; }
folder=${1:-}
fail() { echo "data_prep/lvis.sh: $*" >&2; exit 2; }
[[ -d $folder ]] || fail "'$folder' is not a folder: give the folder of lvis_v1_val.json, train2017/ and val2017/ first"
notes=$folder/lvis_v1_val.json
[[ -f $notes ]] || fail "$notes is not there: unpack lvis_v1_val.json.zip in $folder"
count() { { grep -o "\"$1\"" "$notes" || true; } | wc -l; }
[[ $(count neg_category_ids) -eq 19809 ]] || fail "$notes lists $(count neg_category_ids) images, not 19809: unpack it again"
[[ $(count segmentation) -eq 244707 ]] || fail "$notes holds $(count segmentation) objects, not 244707: unpack it again"
lost=$(comm -23 <(grep -oE '(train|val)2017/[0-9]{12}\.jpg' "$notes" | sort -u) \
  <(cd "$folder" && find train2017 val2017 -maxdepth 1 -name '*.jpg' 2>/dev/null | sort))
[[ -z $lost ]] || fail "$(wc -l <<<"$lost") photographs are missing, such as $folder/$(head -n 1 <<<"$lost"):" \
  "unpack train2017.zip and val2017.zip there"
echo "LVIS v1 val is complete. Next: frisket eval configs/eval_instance_lvis.yaml data=$notes images=$folder …"
