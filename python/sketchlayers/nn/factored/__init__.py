"""Layers that are computed by plain layers of less work, one after the other."""
