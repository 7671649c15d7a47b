"""Studies that were done once to answer a question; each says what it found.

They run by ``python experiments/study.py NAME``; without a name that command lists them.
"""
