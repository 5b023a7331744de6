"""QDrop's blocks, then the network with the focus on what decoding reads."""

base = ['qdrop-network-uniform', '_regression-loss']
