"""Data sets that the embedded models are trained on."""
