"""Keys centered; each softmax on the grid of least error (on QDrop).

The error is that of the attention's output; a grid is power of two or uniform.
"""

base = ['qdrop', '_hybrid', '_centered-keys']
