# As drd.py, on a float model whose keys and values were centered first (exact;
# where an attention has one projection to keys: see AttentionCentering).
_base_ = ['./drd.py']
rewrites = [
    dict(
        type='AttentionCentering',
        key_center='midrange',
        value_center='midrange',
    )
]
