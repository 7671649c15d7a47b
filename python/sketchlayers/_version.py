"""The version of the package and the oldest PyTorch it takes: written here and nowhere else."""

__version__ = "0.2.0"

# The oldest PyTorch that the sources compile against.
OLDEST_TORCH = (2, 11)
