"""Keys and values centered (on QDrop).

In place of bimodal integration.
"""

base = ['qdrop', '_centering']
