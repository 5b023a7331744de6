"""As mse, with keys and values centered first (exact)."""

base = ['mse', '_centering']
