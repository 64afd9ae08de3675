"""The replicated store: the core against a model with an adversary, and instances on real NATS servers."""
