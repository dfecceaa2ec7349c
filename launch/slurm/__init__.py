"""Launcher for SLURM."""
