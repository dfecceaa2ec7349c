"""The run folder: names of its files, one writer, checkpoints, metrics."""
