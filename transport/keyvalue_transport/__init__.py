"""The transport: wRPC over NATS, both sides. Knows nothing of the engine, of wasmCloud's hosts, or of metrics.

Bytes flow values → keyvalue (codec) → invocation (the server's state machine) or call (the client's), all without I/O; connection,
server and client are the shell around them that speaks NATS through nats-py.
"""
