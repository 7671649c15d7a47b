"""Finishes a compressed network: refinement, batch norms, change of its outputs."""
