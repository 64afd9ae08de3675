"""The protocol with a wasmCloud 1.x host: host data, links, lattice, secrets, health, shutdown.

This package does not depend on the key-value interface.
"""
