"""As mse-depthwise, with input channels scaled first (exact)."""

base = ['mse-depthwise', '_channel-scale']
