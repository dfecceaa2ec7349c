"""Launchers: start the parts of a job, given by its resolved configuration, on SLURM, Ray or this machine."""
