"""Recognizers and the parts they are composed of."""
