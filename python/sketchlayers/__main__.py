"""``python -m sketchlayers``: the command line, or the doctor when nothing is asked."""

import sys

from sketchlayers.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["doctor"]))
