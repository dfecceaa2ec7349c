"""Weight files of others, read as data."""
