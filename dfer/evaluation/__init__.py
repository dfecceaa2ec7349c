"""Exact counts, scores, and the reports made of them."""
