"""Launcher for Ray."""
