"""What all scripts use: processes, options, runs on disk, tables, plots, timing, signals."""
