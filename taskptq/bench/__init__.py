"""Tables of results: what is measured, and how it is shown."""
