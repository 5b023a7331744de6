"""Methods that choose the rounding of a unit's weights."""
