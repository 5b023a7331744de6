# Distribution rectification distillation (DRD of Q-DETR): DA and FQM at once,
# see da.py and fqm.py.
_base_ = ['./fqm.py']
qconfig = dict(
    overrides=[
        dict(
            pattern=r're:decoder\.layers\.\d+\.(self|cross)_attn(\.attn)?',
            query=dict(type='AlignedQuantizer'),
        )
    ]
)
