"""gptq-network, and a few tensors with more bits where it hurts."""

base = 'gptq-network'
mixed_precision = dict(
    keep=0.99,
    budget=dict(macs_above=0.05),
    candidates=[8, 16, 'float'],
)
