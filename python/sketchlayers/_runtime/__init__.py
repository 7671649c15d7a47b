"""Processes, progress, threads, files."""
