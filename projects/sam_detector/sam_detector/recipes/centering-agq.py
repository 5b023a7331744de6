"""Keys centered; softmax on a power-of-two grid (on QDrop)."""

base = ['qdrop', '_agq', '_centered-keys']
