# Ours: the ground of ours-s.py, then QDrop's blocks, then Selective Focus on
# the whole network; half of qdrop.py's steps, so that both phases take about
# as long as its one.
_base_ = ['./qdrop-selective-focus.py']
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
reconstruction = dict(
    steps=200, network_steps=150, network=dict(weight_lr=0.02)
)
