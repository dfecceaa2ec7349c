"""Launcher for the processes of this machine."""
