"""Semantic Guided Focus alone.

The foreground of each head comes first, by the float model's own confidence;
all heads have the same weight. Like sas and selective-focus, a reconstruction
of Fan et al., AAAI 2024.
"""

base = 'network-uniform'
reconstruction = dict(
    loss=dict(
        _delete_=True, type='SelectiveFocusLoss', focus='soft', selection=None
    )
)
