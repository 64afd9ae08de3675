"""The processes of the benchmark itself: load generator, bare responder and watching component."""
