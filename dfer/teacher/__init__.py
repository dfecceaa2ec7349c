"""Frozen teachers: features of a picture, or of its description, that a projection head is fitted to."""
