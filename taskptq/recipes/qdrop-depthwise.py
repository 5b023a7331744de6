"""QDrop, with scales per channel on depthwise inputs."""

base = 'qdrop'
qconfig = dict(activation=dict(per_channel=True))
