#!/usr/bin/env bash
# What slurm_dfew.sh, slurm_ferv39k.sh and slurm_mafw.sh share: a method of a data set to SLURM, all folds and the table.
# usage: slurm.sh DATASET [-m METHOD] [-c CLUSTER.yaml] [-o PARTS] [-n] [a.b=c ...]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
set_name=$1
shift

usage() {
    cat <<TEXT
usage: launch/slurm_$set_name.sh [-m METHOD] [-c CLUSTER.yaml] [-o PARTS] [-n] [a.b=c ...]

  -m METHOD   a file of configs/methods without .yaml, or the path of a YAML of your own
                                                          [\$METHOD, now ${METHOD:-dfer_clip}]
  -c FILE     resources, see configs/clusters/            [\$CLUSTER, now ${CLUSTER:-configs/clusters/slurm.yaml}]
  -o PARTS    only these, such as fold_1,fold_2           [\$ONLY, now ${ONLY:-all}]
  -n          show what would be submitted
  a.b=c       values of the configuration; cluster.a=c of the resources

Safe to run again: it submits only what is neither finished nor in the queue.
TEXT
}

method=${METHOD:-dfer_clip} cluster=${CLUSTER:-$root/configs/clusters/slurm.yaml} only=${ONLY:-}
words=()
while [ $# -gt 0 ]; do
    case $1 in
    -m) method=${2:?"-m needs a METHOD"} && shift ;;
    -c) cluster=${2:?"-c needs a FILE"} && shift ;;
    -o) only=${2:?"-o needs PARTS"} && shift ;;
    -n) words+=(--dry-run) ;;
    -h | --help) usage && exit 0 ;;
    *=*) words+=("$1") ;;
    *) echo "error: $1: expected -m, -c, -o, -n or a.b=c. See $0 --help" >&2 && exit 2 ;;
    esac
    shift
done
config=$root/configs/methods/$method.yaml
case $method in *.yaml | *.yml) config=$method ;; esac
if [ ! -f "$config" ]; then
    known=$(cd "$root/configs/methods" && printf '%s ' *.yaml)
    echo "error: $method: expected one of ${known//.yaml/}- see configs/methods - or the path of a YAML" >&2
    if [ -f "$root/configs/$method.yaml" ]; then
        echo "This name stands for a method and a set: dfer-launch slurm $method" >&2
    fi
    exit 2
fi
[ -z "$only" ] || words+=(--only "$only")
# This checkout's code, here and on the hosts, whatever is installed.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
launcher=$root/.venv/bin/dfer-launch
[ -x "$launcher" ] || launcher=dfer-launch
exec "$launcher" slurm "$config" "$root/configs/sets/$set_name.yaml" --cluster "$cluster" ${words[@]+"${words[@]}"}
