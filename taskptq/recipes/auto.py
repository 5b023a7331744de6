"""The fewest bit operations that keep the score, from 4, 8 and 16 bits."""

base = 'mse-depthwise'
mixed_precision = dict(
    keep=0.99,
    candidates=[4, 8, 16],
    reconstruction=dict(rounding='gptq'),
)
