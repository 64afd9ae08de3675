"""The replicated store: each instance of the provider holds a copy of one NATS key-value bucket in its engine.

    write ──> bucket.py ──> core.py ── PUB ──> JetStream ── delivery ──> core.py ──> engine, and the answer
    read  ──> bucket.py ──> engine, after a barrier (reads = latest) or at once (reads = local)

`core` has no I/O: frames and times go in, frames and answers come out. `follower` connects it to NATS.
docs/replication.md explains the rules, and why they are as they are.
"""
