"""Benchmarks of single parts: `dfer bench loader | step | save | resume | scale`."""
