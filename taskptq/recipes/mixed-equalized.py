"""gptq-equalized, and a few tensors with more bits where it hurts.

Ranges of activations are set before the choice, which knows what GPTQ leaves
of each weight.
"""

base = ['mixed-weighted', '_equalization']
reconstruction = dict(input_ranges=True)
mixed_precision = dict(preview_rounding=True)
