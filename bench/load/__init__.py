"""The load generator and what it calls: workloads, answers, the bare responder."""
