"""The command line: one file a command; models by name and folders of images."""
