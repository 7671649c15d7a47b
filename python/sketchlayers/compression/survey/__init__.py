"""Looks at a model: its layers, their sizes, and which of them may be replaced."""
