"""Channels of attention heads are rotated first.

Exact; see HeadRotation. Offsets of keys and values would spread, so they are
centered before.
"""

rewrites = [
    dict(
        type='AttentionCentering',
        key_center='midrange',
        value_center='midrange',
    ),
    dict(type='HeadRotation'),
]
