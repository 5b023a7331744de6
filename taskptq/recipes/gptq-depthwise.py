"""GPTQ, with ranges per channel on depthwise inputs."""

base = 'gptq'
qconfig = dict(activation=dict(per_channel=True))
