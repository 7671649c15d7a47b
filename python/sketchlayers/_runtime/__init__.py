"""Processes, progress, threads, timing, files."""
