"""Read untrusted pictures: list a folder's frames, order them, check and decode them; needs no torch."""
