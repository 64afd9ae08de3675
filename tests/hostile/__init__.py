"""End-to-end tests of a launched provider with clients that are hostile, or too eager."""
