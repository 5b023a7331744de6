"""Keys centered; each softmax head on its best grid (on QDrop).

The error is that of the attention's output; a grid is power of two or uniform.
"""

base = ['qdrop', '_hybrid', '_head', '_centered-keys']
