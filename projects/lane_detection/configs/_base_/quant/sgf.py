# Semantic Guided Focus alone: the foreground of each head first, by the float
# model's own confidence; all heads weigh the same. A reconstruction of Fan et
# al., AAAI 2024, as are sas.py and selective-focus.py.
_base_ = ['./network-uniform.py']
reconstruction = dict(
    loss=dict(
        _delete_=True, type='SelectiveFocusLoss', focus='soft', selection=None
    )
)
