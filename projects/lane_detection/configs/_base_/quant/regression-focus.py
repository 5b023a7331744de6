# As qdrop-regression-focus.py, on the whole network from the start.
_base_ = ['./network-uniform.py']
reconstruction = dict(
    loss=dict(
        _delete_=True,
        type='SelectiveFocusLoss',
        focus='soft',
        focus_kinds=['regression'],
        eps_bg=dict(regression=0.05),
        normalize='channel',
        selection=None,
    )
)
