"""The benchmark's own processes: load generator, bare responder and watching component."""
