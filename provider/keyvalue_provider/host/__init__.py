"""The contract with a wasmCloud 1.x host: host data, links, lattice, secrets, health, shutdown.

It knows nothing about key-value stores.
"""
