"""As mse-depthwise, with channels between layers equalized first (exact)."""

base = ['mse-depthwise', '_equalization']
