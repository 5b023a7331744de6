# Sensitivity Aware Selection alone: heads by how much their error distorts
# the lanes; all places of a head weigh the same.
_base_ = ['./network-uniform.py']
reconstruction = dict(
    loss=dict(
        _delete_=True,
        type='SelectiveFocusLoss',
        focus=None,
        selection='threshold',
        rho=0.05,
        update_interval=20,
        refresh_interval=100,
    )
)
