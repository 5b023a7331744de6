"""Keys centered; each softmax head on its best grid.

The error is that of the attention's output; a grid is power of two or uniform.
Learned on top of QDrop.
"""

base = ['qdrop', '_hybrid', '_head', '_centered-keys']
