"""Measure how models hold under noise: ``taskptq bench robustness``."""
