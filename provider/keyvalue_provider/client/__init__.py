"""The command `wrpc-kv`: a client of `wrpc:keyvalue` for people and scripts.

command        reads the command line, runs one command, and turns errors into exit codes
command_line   the arguments, the help and the completion
session        the connection to the provider: a blocking one for a few calls, a lasting one for anything else
functions      the commands that call one function, and `health` and `ping`
streams        standard input, output and error, each of which can be closed, a terminal, or a pipe that nobody reads
records        a key and its value as JSON
transfer       `export` and `import`
watch          the command `watch`; `watch_link` is the link that it needs

A call takes less than 1 ms, and most of the command's time is spent on imports. So modules that only some commands
need are imported inside functions.
"""
