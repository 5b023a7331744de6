"""As mse-depthwise, with LayerNorms shifted and scaled first (exact)."""

base = ['mse-depthwise', '_outlier-suppression']
