"""MinMax ranges, per channel on depthwise inputs."""

base = 'minmax'
qconfig = dict(activation=dict(per_channel=True))
