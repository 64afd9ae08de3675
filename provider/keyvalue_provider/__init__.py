"""The capability provider that a wasmCloud host starts. It joins the transport and the engine.

host                   the contract with a host; it is independent of key-value, so another provider could use it
config                 options, their sources, and the command line
keyvalue, watching     the functions of wrpc:keyvalue, and the events for watching components
observe                log, metrics and health
packaging              the archive that a host loads
__main__, process      the command and its process
client_command         the command `wrpc-kv`
"""
