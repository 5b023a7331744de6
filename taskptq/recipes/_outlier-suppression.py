"""Channels of LayerNorms are shifted and scaled for their readers first.

Exact; see ChannelShiftScale.
"""

rewrites = [dict(type='ChannelShiftScale')]
