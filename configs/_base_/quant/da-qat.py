# lsq-qat.py with aligned queries (DA of Q-DETR), see da.py.
_base_ = ['./lsq-qat.py']
qconfig = dict(
    overrides=[
        dict(
            pattern=r're:decoder\.layers\.\d+\.(self|cross)_attn(\.attn)?',
            query=dict(type='AlignedQuantizer', learn_zero_point=True),
        )
    ]
)
