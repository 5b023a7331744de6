"""gptq-matched, then steps on the whole network towards the float model."""

base = ['gptq-matched', '_network-steps']
