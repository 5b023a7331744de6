"""Inputs and outputs of units: recorded, cached, drawn from."""
