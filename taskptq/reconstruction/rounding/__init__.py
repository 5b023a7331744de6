"""Ways to choose the rounding of a unit's weights."""
