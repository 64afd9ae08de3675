"""wRPC over NATS: connection, credentials, TLS, server and client. `direct` is the fast path for servers."""
