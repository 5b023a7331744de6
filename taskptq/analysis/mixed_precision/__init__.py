"""Mixed precision: which tensor gets how many bits under a budget."""
