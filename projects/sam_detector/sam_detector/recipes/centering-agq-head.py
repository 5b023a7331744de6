"""As centering-agq, with a granularity for each head (on QDrop)."""

base = ['qdrop', '_agq', '_head', '_centered-keys']
