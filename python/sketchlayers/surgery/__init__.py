"""Models as objects: copy them, replace their layers, run them without a trace."""
