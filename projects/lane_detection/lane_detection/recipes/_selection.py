"""Sensitivity Aware Selection: weight heads by the distortion of lanes."""

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
