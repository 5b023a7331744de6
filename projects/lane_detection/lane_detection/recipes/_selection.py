"""Sensitivity Aware Selection: heads by how their error distorts the lanes."""

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
