"""Keys and values centered, in place of bimodal integration."""

rewrites = [dict(type='AttentionCentering', patterns=['sam.*'])]
