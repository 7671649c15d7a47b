"""Tests of the operators against a float64 reference that shares no code with them."""
