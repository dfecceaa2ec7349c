"""A bed to look around in, as root: `python -m tests.cluster slurm` or `ray`. It ends with the shell it opens."""

import argparse
import os
import shlex
import subprocess

from tests.cluster.hosts import Network
from tests.cluster.ray_bed import RayBed
from tests.cluster.slurm import SlurmBed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("bed", choices=["slurm", "ray"])
    parser.add_argument("--hosts", type=int, default=4)
    args = parser.parse_args()
    with Network() as network:
        bed = SlurmBed(network, args.hosts) if args.bed == "slurm" else RayBed(network, args.hosts - 1)
        with bed:
            print(f"logs in {network.logs}; the bed ends with this shell; a command on a host:")
            for name, host in network.hosts.items():
                print(f"  {name:12}{host.address:12}{shlex.join(host.enter())} COMMAND")
            subprocess.run([os.environ.get("SHELL", "bash")], env=bed.env(), check=False)


if __name__ == "__main__":
    main()
