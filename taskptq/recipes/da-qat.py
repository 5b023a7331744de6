"""As lsq-qat, with the aligned queries of da."""

base = 'lsq-qat'
qconfig = dict(
    overrides=[
        dict(
            pattern=r're:decoder\.layers\.\d+\.(self|cross)_attn(\.attn)?',
            query=dict(type='AlignedQuantizer', learn_zero_point=True),
        )
    ]
)
