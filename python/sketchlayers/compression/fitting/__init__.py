"""Fits replacements of layers: each by itself, or one after the other."""
