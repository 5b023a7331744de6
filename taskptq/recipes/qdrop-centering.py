"""As qdrop, with keys and values centered first (exact)."""

base = ['qdrop', '_centering']
