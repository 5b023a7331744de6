"""As qdrop-depthwise, with input channels scaled first (exact)."""

base = ['qdrop-depthwise', '_channel-scale']
