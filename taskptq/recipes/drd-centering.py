"""As drd, with keys and values centered first (exact)."""

base = ['drd', '_centering']
