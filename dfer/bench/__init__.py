"""Measurements of single rooms: `dfer bench loader`, `dfer bench step`."""
