"""Keys centered.

Values stay: rows on a power-of-two grid sum to nearly 1 as they are.
"""

rewrites = [dict(type='AttentionCentering', patterns=['sam.*'], values=False)]
