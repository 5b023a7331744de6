"""gptq-equalized, and a few tensors with more bits where it hurts."""

base = ['mixed-weighted', '_equalization']
reconstruction = dict(input_ranges=True)
