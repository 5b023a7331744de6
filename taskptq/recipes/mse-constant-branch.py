"""As mse-depthwise, with constant modules replaced by their output (exact)."""

base = ['mse-depthwise', '_constant-branch']
