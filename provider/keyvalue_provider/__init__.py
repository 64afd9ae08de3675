"""The capability provider: what a wasmCloud host launches. Joins transport and engine; the only room that knows both.

host_data, links, host     the host's contract, and nothing of key-value: another provider could be built on them and on transport
options, service           key-value: what can be set, and the functions
log, __main__              the process
client_command             wrpc-kv, a client for people
"""
