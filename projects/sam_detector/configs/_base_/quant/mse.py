# Ranges of least error, rounding to nearest.
_base_ = ['./points.py']
reconstruction = None
