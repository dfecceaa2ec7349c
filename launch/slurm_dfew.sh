#!/usr/bin/env bash
# On a login node: submits the five folds of DFEW and leaves a table behind. Options: launch/slurm_dfew.sh --help
exec bash "$(dirname "${BASH_SOURCE[0]}")/slurm.sh" dfew "$@"
