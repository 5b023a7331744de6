"""Input channels are scaled in front of the grid, by rewrites.

First where it costs nothing: between layers, then at one multiplication for
each element where the error falls enough. Exact; see CrossLayerEqualization
and ChannelScale.
"""

rewrites = [
    dict(type='CrossLayerEqualization', alpha='search'),
    dict(type='ChannelScale'),
]
