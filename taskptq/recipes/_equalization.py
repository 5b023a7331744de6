"""Channels between layers are scaled for the quantized readers first.

Exact; see CrossLayerEqualization.
"""

rewrites = [dict(type='CrossLayerEqualization', alpha='search')]
