"""Like qdrop-regression-focus, on the whole network from the start."""

base = ['network-uniform', '_regression-loss']
