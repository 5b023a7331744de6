"""As mse-depthwise, with outlier channels split first (exact)."""

base = ['mse-depthwise', '_channel-split']
