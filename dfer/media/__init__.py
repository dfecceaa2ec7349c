"""Pictures of anybody's: which files of a folder they are, their order, and what their bytes hold; needs no torch."""
