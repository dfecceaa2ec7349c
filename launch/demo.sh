#!/usr/bin/env bash
# From nothing to a five-fold UAR/WAR table on generated faces: synth -> build -> crossval -> report.
# Safe to run again: every step keeps what is already there.   usage: launch/demo.sh [FOLDER]
set -euo pipefail
config="$(cd "$(dirname "$0")/.." && pwd)/configs/demo.yaml"
out=${1:-demo}
jobs=$(nproc)
# Half of the cores compute, the others decode: small models gain nothing from more threads, and lose where cores are shared.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(((jobs + 1) / 2))}

echo "== 1/3 generated faces in DFEW's raw layout"
dfer-shards synth dfew "$out/raw" --clips 980 --seed 1 --jobs "$jobs"
echo "== 2/3 shards"
dfer-shards build dfew "$out/raw" "$out/shards" --jobs "$jobs"
echo "== 3/3 five folds of $(basename "$config")"
dfer crossval "$config" data.shards="$out/shards" run="$out/run"
