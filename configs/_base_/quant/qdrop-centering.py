# As qdrop.py, on a float model whose keys and values were centered first
# (exact, see AttentionCentering).
_base_ = ['./qdrop.py']
rewrites = [
    dict(
        type='AttentionCentering',
        key_center='midrange',
        value_center='midrange',
    )
]
