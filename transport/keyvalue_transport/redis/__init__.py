"""The Redis protocol: requests and answers without I/O, and a listener."""
