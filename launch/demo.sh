#!/usr/bin/env bash
# From nothing to a five-fold UAR/WAR table on generated faces: synth -> build -> crossval -> report.
# Safe to run again: every step keeps what is already there.   usage: launch/demo.sh [FOLDER]
set -euo pipefail
config="$(cd "$(dirname "$0")/.." && pwd)/configs/demo.yaml"
out=${1:-demo}
jobs=$(nproc)
# A fold computes and decodes in one thread, and as many folds run at a time as there are cores, at most all five:
# small models gain nothing from more threads.
folds=$((jobs < 5 ? jobs : 5))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

echo "== 1/3 generated faces in DFEW's raw layout"
dfer-shards synth dfew "$out/raw" --clips 980 --seed 1 --jobs "$jobs"
echo "== 2/3 shards, at the 64 px that the model takes: scaled down once instead of in every epoch"
dfer-shards build dfew "$out/raw" "$out/shards" --max-side 64 --jobs "$jobs"
echo "== 3/3 five folds of $(basename "$config"), $folds at a time"
dfer-launch local "$config" --parallel "$folds" data.shards="$out/shards" run="$out/run"
