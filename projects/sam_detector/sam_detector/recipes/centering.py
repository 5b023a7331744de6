"""Keys and values centered, in place of bimodal integration.

Learned on top of QDrop.
"""

base = ['qdrop', '_centering']
