"""Which host class has which counterpart, block and output layer."""
