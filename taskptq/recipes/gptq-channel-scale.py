"""As gptq-depthwise, with input channels scaled first (exact)."""

base = ['gptq-depthwise', '_channel-scale']
