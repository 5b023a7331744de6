"""Errors, choice and gradients of box grids."""
