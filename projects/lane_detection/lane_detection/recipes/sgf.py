"""Semantic Guided Focus alone.

The foreground of each head first, by the float model's own confidence; all
heads weigh the same. A reconstruction of Fan et al., AAAI 2024, as are sas
and selective-focus.
"""

base = 'network-uniform'
reconstruction = dict(
    loss=dict(
        _delete_=True, type='SelectiveFocusLoss', focus='soft', selection=None
    )
)
