"""Keys centered; each softmax on the grid of least error.

The error is that of the attention's output; a grid is power of two or uniform.
Learned on top of QDrop.
"""

base = ['qdrop', '_hybrid', '_centered-keys']
