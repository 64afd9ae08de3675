"""Adversarial clients against a launched provider and a real NATS server."""
