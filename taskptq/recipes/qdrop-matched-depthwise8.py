"""As qdrop-matched, with depthwise convolutions at 8 bits at least."""

base = 'qdrop-matched'
qconfig = dict(depthwise_bits=8)
