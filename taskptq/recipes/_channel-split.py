"""Channels far larger than the others are split first.

Exact; see ChannelSplit.
"""

rewrites = [dict(type='ChannelSplit')]
