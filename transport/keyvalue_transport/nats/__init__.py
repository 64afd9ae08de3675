"""wRPC over NATS: connection, credentials, TLS, server and client. The package `direct` is the fast path."""
