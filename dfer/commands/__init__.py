"""The commands of `dfer`, a file each: arguments, and what runs them. Rooms are imported inside the functions, so that
`--help` and mistakes in arguments or configurations answer at once, not after torch.
"""
