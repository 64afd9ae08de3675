"""The commands `wrpc-kv export` and `wrpc-kv import`: all keys of a bucket, over the wire, to a file and back.

exporting     pages of keys ──> values, several batches in flight ──> the file, in the provider's order
importing     the file ──> batches, several in flight ──> the provider
formats       JSON lines and snapshots, as an export writes them
sources       the same, as an import reads them
position      where an interrupted run continues: a small file beside the file
progress      the line on a terminal

Calls show neither buckets nor deadlines. So an export has the keys of one bucket, without deadlines, and an import sets
none.
"""
