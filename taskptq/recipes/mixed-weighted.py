"""gptq-weighted, and a few tensors with more bits where it hurts."""

base = 'mixed-matched'
reconstruction = dict(position_weights=True, position_optional=True)
