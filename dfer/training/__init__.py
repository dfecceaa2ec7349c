"""Optimizers, engines, logging and the loop; knows no method and no file format of data."""
