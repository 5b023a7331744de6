"""Grids of a few learned levels per channel, for weights below 3 bits."""
