"""mixed-equalized, then steps on the whole network towards the float model."""

base = ['mixed-equalized', '_network-steps']
reconstruction = dict(network_steps=900)
