"""Turns a budget into ranks."""
