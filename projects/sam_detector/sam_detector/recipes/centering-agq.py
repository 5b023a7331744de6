"""Keys centered; softmax on a power-of-two grid.

Learned on top of QDrop.
"""

base = ['qdrop', '_agq', '_centered-keys']
