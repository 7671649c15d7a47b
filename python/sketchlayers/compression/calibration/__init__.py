"""Runs a model on images and measures the moments of its layers' inputs."""
