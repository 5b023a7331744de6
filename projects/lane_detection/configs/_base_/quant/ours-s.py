# Ours, statistics only: channels equalized between layers, each head of a
# softmax on the grid of least error (power of two or uniform), and the few
# layers from which LSTR and BezierLaneNet regress curves at no less than 8
# bits. Ranges of least error, rounding to nearest.
_base_ = ['./mse.py']
rewrites = [dict(type='CrossLayerEqualization')]
qconfig = dict(
    softmax=dict(
        type='PowerOfTwoQuantizer',
        observer=dict(
            type='AttentionOutputObserver', taus=[0, 1, 2, 4], per_head=True
        ),
    ),
    # Last layers of other models are named because a pattern has to match;
    # they have 8 bits anyway.
    edges=[
        r're:head\.(reg_branches\..*|convs\..*|fc_(cls|reg)|\w+\.conv_reg)'
    ],
)
