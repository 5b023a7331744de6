"""As mse-depthwise, with heads centered and rotated first (exact)."""

base = ['mse-depthwise', '_head-rotation']
