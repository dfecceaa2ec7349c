#!/usr/bin/env bash
# On a login node: submits FERV39k's one split and leaves a table behind. Options: launch/slurm_ferv39k.sh --help
exec bash "$(dirname "${BASH_SOURCE[0]}")/slurm.sh" ferv39k "$@"
