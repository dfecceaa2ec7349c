"""Optimizers, engines, logging and the loop. Independent of methods and of the data's file format."""
