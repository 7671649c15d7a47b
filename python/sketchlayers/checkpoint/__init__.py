"""Checkpoints: whole models, compressed or not, as one safetensors file each.

`save` writes one, `load` makes the model again: from the network's class, or, for torchvision's
networks, from nothing. `read_description` reads what the file says without its tensors. The format
is described in ``docs/file_format.md``.
"""

from sketchlayers.checkpoint._load import Description, load, read_description
from sketchlayers.checkpoint._save import save

__all__ = ["Description", "load", "read_description", "save"]
