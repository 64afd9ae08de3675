"""wRPC without I/O: value encoding, the handler contract, and the lifecycle of an invocation on both sides.

This package does not depend on any interface or socket.
"""
