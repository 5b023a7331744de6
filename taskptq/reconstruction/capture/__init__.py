"""Record, cache and sample the inputs and outputs of units."""
