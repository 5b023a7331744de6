"""Keys and values of the float model are centered first.

Exact where an attention has one projection to keys: see AttentionCentering.
"""

rewrites = [
    dict(
        type='AttentionCentering',
        key_center='midrange',
        value_center='midrange',
    )
]
