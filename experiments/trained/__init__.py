"""Trained networks compressed without training: weights, images, variants, tables."""
