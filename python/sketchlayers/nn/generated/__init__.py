"""Layers that form their dense weight from fewer parameters: hashed, or predicted."""
