"""QDrop's blocks, then the network, focused on what decoding reads."""

base = ['qdrop-network-uniform', '_regression-loss']
