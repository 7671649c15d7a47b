"""Tests of the experiments: networks, data sets, the training loop, resume, the demo."""
