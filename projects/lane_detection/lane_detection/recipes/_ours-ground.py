"""Common part of ours, ours-s and qdrop-ours-s.

Channels equalized between layers, each softmax head on the grid of least
error (power of two or uniform), and the few layers that regress curves in
LSTR and BezierLaneNet at 8 bits or more.
"""

rewrites = [dict(type='CrossLayerEqualization')]
qconfig = dict(
    softmax=dict(
        type='PowerOfTwoQuantizer',
        observer=dict(
            type='AttentionOutputObserver', taus=[0, 1, 2, 4], per_head=True
        ),
    ),
    # Includes last layers of other models, since a pattern has to match; they
    # have 8 bits anyway.
    edges=[
        r're:head\.(reg_branches\..*|convs\..*|fc_(cls|reg)|\w+\.conv_reg)'
    ],
)
