"""The capability provider that a wasmCloud host starts. It connects the transport to the engine.

host                   the protocol of a wasmCloud host; this package does not depend on the key-value interface
config                 options, their sources, and the command line
keyvalue, watching     the wrpc:keyvalue functions, and the change events for watching components
observe                log, metrics and health
packaging              the archive that a host loads
__main__, process      the command `keyvalue-inmemory` and its process
client                 the command `wrpc-kv`
"""
