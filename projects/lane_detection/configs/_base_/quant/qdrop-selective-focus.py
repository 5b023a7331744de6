# QDrop's blocks, then Selective Focus on the whole network.
_base_ = ['./qdrop-network-uniform.py']
reconstruction = dict(
    loss=dict(
        _delete_=True,
        type='SelectiveFocusLoss',
        focus='soft',
        selection='threshold',
        rho=0.05,
        update_interval=20,
        refresh_interval=100,
    )
)
