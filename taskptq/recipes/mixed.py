"""mse-depthwise; GPTQ and up to 3 % of products above where it hurts."""

base = 'mse-depthwise'
mixed_precision = dict(
    keep=0.99,
    budget=dict(macs_above=0.03),
    candidates=[8, 16, 'float'],
    reconstruction=dict(rounding='gptq'),
)
