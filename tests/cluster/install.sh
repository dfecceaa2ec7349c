#!/usr/bin/env bash
# Installs what the virtual cluster is made of from Debian's own packages (about 32 MB); does nothing where it is there.
set -euo pipefail

PACKAGES=(slurmctld slurmd slurm-client slurmdbd munge mariadb-server iproute2 nftables procps util-linux)

for program in slurmctld slurmd srun slurmdbd munged mariadbd ip bridge nft pkill setpriv; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null || missing=1
done
[ -n "${missing:-}" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "error: cluster tests: expected root and apt-get to install ${PACKAGES[*]}; run as root on Debian 12" >&2
    exit 2
fi
# The bed starts its own private daemons, so the packages' services must not start: this file is dpkg's way to say so.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq -y --no-install-recommends "${PACKAGES[@]}" >/dev/null
