"""A store whose handles return awaitables, like a store that asks others first. Its content is in an engine store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from keyvalue_engine import Bucket, BucketOptions, Quota, Store, StoreError, StoreOptions
from keyvalue_provider.keyvalue.handles import BucketHandle

__all__ = ["LATER", "Later", "WaitingStore"]

T = TypeVar("T")
#: Makes an awaitable from a function and its arguments. The function is called while the awaitable is awaited.
Later = Callable[..., Awaitable[Any]]


async def in_coroutine(function: Callable[..., T], *arguments: object) -> T:
    await asyncio.sleep(0)
    return function(*arguments)


def in_future(function: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
    """Return a future that a callback sets, without a task."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def answer() -> None:
        if future.cancelled():
            return
        try:
            future.set_result(function(*arguments))
        except (StoreError, RuntimeError) as error:
            future.set_exception(error)

    loop.call_soon(answer)
    return future


#: The kinds of awaitables.
LATER: dict[str, Later] = {"coroutine": in_coroutine, "future": in_future}


class WaitingHandle:
    """A handle whose methods are those of a bucket, but return awaitables."""

    def __init__(self, bucket: Bucket, later: Later) -> None:
        self._bucket = bucket
        self._later = later

    def __len__(self) -> int:
        return len(self._bucket)

    def get_each(self, keys: Sequence[bytes]) -> None:
        """Return None, because each read must wait."""

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        return partial(self._later, getattr(self._bucket, name))


class WaitingStore:
    """A store that opens such handles. They read and write `held`."""

    def __init__(self, later: Later, options: StoreOptions | None = None) -> None:
        self.held = Store(options)
        self._later = later

    @property
    def options(self) -> StoreOptions:
        return self.held.options

    def bucket(self, name: bytes, options: BucketOptions, /) -> BucketHandle:
        return cast(BucketHandle, WaitingHandle(self.held.bucket(name, options), self._later))

    def now_ns(self) -> int:
        return self.held.now_ns()

    def add_quota(self, quota: Quota, buckets_max: int, /) -> None:
        self.held.add_quota(quota, buckets_max)

    def count_quota(self, quota: Quota, buckets_max: int, /) -> None:
        self.held.count_quota(quota, buckets_max)

    def remove_quota(self, quota: Quota, /) -> None:
        self.held.remove_quota(quota)
