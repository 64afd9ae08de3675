"""The options of a watching link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from keyvalue_provider.config import values
from keyvalue_provider.config.declaration import OptionTable, option

__all__ = ["ENCODED", "PLAIN", "WATCHING_LINK_OPTIONS", "WatchingLinkOptions"]

ENCODED, PLAIN = "encoded", "plain"


@dataclass(frozen=True, slots=True)
class WatchingLinkOptions:
    """Options of a link to a watcher. `keyvalue_provider.watching.patterns` parses the patterns."""

    watch: str | None = option(
        values.TEXT,
        "changes to report: patterns separated by commas, like SET@key, DEL@text*, SET@bucket/*",
    )
    watch_bucket: bytes = option(
        values.ENCODED_TEXT,
        "bucket argument in calls to the watcher; {bucket} means the bucket's name; wasmCloud 1.x needs a number",
        default=b"0",
    )

    bucket: bytes | None = option(values.BUCKET_NAME, "the bucket of all patterns that name none")
    keys: str | None = option(
        values.one_of(ENCODED, PLAIN), "with store=jetstream: watch buckets of this form, instead of the provider's"
    )
    js_domain: str | None = option(values.KV_BUCKET, "with keys=plain: JetStream domain of the KV buckets")

    @classmethod
    def from_config(cls, config: Mapping[str, str]) -> tuple[WatchingLinkOptions, list[str]]:
        """Return the options in a link's source_config, and remarks about the names in it.

        :raises OptionError: a value is malformed, or a name is misspelt
        """
        own, remarks = WATCHING_LINK_OPTIONS.read(config)
        return cls(**own), remarks


WATCHING_LINK_OPTIONS = OptionTable(WatchingLinkOptions, kind="option of a watcher")
