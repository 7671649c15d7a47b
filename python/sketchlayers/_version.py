"""The version of the package, the only place where it is written."""

__version__ = "0.1.0"

# The oldest PyTorch that the sources compile against.
OLDEST_TORCH = (2, 11)
