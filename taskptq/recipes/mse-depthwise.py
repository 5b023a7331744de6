"""Ranges of least error, per channel on depthwise inputs."""

base = 'mse'
qconfig = dict(activation=dict(per_channel=True))
