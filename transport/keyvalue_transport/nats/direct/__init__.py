"""The direct path: a transport for nats-py that answers invocations as soon as their bytes arrive."""
