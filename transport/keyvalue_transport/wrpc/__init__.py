"""wRPC without I/O: value encoding, the handler contract, and the life of an invocation on the server and the client.

It knows no interface and no socket.
"""
