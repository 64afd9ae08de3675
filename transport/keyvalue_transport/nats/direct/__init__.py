"""The direct path: our own implementation of nats-py's transport class, which answers invocations where their bytes arrive."""
