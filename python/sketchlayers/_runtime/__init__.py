"""Processes, progress, threads, settings, timing, files."""
