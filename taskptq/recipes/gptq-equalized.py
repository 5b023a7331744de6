"""gptq-weighted for few bits of activations.

Channels between layers are equalized first (exact), and activations get the
ranges whose errors change the model's outputs least.
"""

base = ['gptq-weighted', '_equalization']
reconstruction = dict(input_ranges=True)
