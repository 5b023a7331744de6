"""Percentile ranges, per channel on depthwise inputs."""

base = 'percentile'
qconfig = dict(activation=dict(per_channel=True))
