"""As qdrop-decoder, with 300 steps and fixed scales: drd-fixed's baseline."""

base = ['qdrop-decoder', '_fixed-scales']
