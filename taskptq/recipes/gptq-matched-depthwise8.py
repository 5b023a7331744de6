"""As gptq-matched, with depthwise convolutions at 8 bits at least."""

base = 'gptq-matched'
qconfig = dict(depthwise_bits=8)
