"""wRPC without I/O: value encoding, the handler contract, the life of an invocation at server and client. Knows no interface and no socket."""
