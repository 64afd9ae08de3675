"""The import of a memory store's snapshot with `keys = plain`: each bucket of the snapshot becomes a KV bucket.

    bucket of the file ──> a missing KV bucket, or an empty one of ours ──> `snapshot_import.fill`

Each KV bucket is marked, filled and served on its own. If the command is interrupted and run again, it skips those that
are finished. Nothing begins before the whole file was checked.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from operator import itemgetter

from keyvalue_engine import StoreError
from keyvalue_engine.snapshot import Reader
from keyvalue_provider.config.options import ProviderOptions
from keyvalue_provider.snapshot_import import RefusedError, Tell, check, fill, when_ready
from keyvalue_replica.importing import Import
from keyvalue_replica.plain_layout import PlainLayout, check_bucket_name
from keyvalue_transport.nats.connection import Connection

__all__ = ["import_buckets"]


async def import_buckets(
    reader: Reader, options: ProviderOptions, connection: Connection, skip: bool, tell: Tell
) -> None:
    """Fill a KV bucket for each bucket of a snapshot, or go on with an import that was interrupted.

    :param skip: True to leave out the keys and the buckets that do not fit
    :raises RefusedError: some do not fit; nothing was imported
    :raises StreamError: a KV bucket is in use, or is not ours
    """
    digest = reader.digest()

    def target(name: bytes) -> Import:
        kv_bucket = check_bucket_name(name)
        replica_options = replace(options.replica_options(kv_bucket), secret=reader.secret)
        return Import(connection, replica_options, digest, PlainLayout(kv_bucket, name, replica_options.domain))

    keys, misfits = 0, 0
    imports: dict[bytes, Import] = {}
    tell("checking the snapshot")
    for name, blocks in groupby(reader, itemgetter(0)):
        try:
            importing = target(name)
        except StoreError as error:
            unfit = sum(len(entries) for _, entries in blocks)
            tell(f"does not fit: {unfit:,} keys: {error}")
            keys, misfits = keys + unfit, misfits + unfit
            continue
        if not await when_ready(importing.was_done, options, tell):
            await importing.look()
            imports[name] = importing
        found, unfit = await check(blocks, importing, tell)
        keys, misfits = keys + found, misfits + unfit
    if misfits and not skip:
        raise RefusedError(f"nothing was imported: {misfits:,} of {keys:,} keys do not fit (--skip imports the others)")
    for name, blocks in groupby(reader, itemgetter(0)):
        if name in imports:
            progress = await imports[name].begin()
            progress = await fill(blocks, imports[name], progress, keys, tell)
            await imports[name].end()
            tell(f"imported the bucket {imports[name].bucket}; {progress.expired:,} keys had expired")
    tell(f"imported {keys - misfits:,} of {keys:,} keys, less those that had expired; {misfits:,} do not fit")
