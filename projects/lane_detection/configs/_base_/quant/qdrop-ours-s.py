# QDrop on the ground of ours-s.py: what its statistics alone change.
_base_ = ['./qdrop.py']
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
