"""Processes that load a provider, or stand beside one: the generator, the bare responder, a watching component; and what they cost."""
