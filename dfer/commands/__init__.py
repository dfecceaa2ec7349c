"""The commands of `dfer`: their arguments, and the functions that run them. The functions import the rooms, so that
`--help` and mistakes in arguments or configurations answer at once, without importing torch.
"""
