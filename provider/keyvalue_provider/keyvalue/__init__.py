"""The policy (what callers may do), the handles (how they use buckets), and the service that carries out calls."""
