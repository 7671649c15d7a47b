"""Many threads, the same bits every time, no network, nothing that executes what it reads."""
