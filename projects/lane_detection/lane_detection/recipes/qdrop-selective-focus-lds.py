"""QDrop's blocks, then the network on the distortion of lanes itself.

The lane distortion score through a soft decoding, whose gradient reaches the
head: for heads whose queries are lines (LSTR, BezierLaneNet, LaneATT).
"""

base = 'qdrop-network-uniform-fixed'
reconstruction = dict(loss=dict(_delete_=True, type='SoftDistortionLoss'))
