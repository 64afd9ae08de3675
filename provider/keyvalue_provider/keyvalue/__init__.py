"""The policy (what callers may do), the handles (how callers use buckets), and the service that executes calls."""
