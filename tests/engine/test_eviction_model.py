"""The model of test_model.py, for stores that evict keys.

The model learns from the observer which keys were evicted. It checks that each of them had to go and was allowed to go,
and that a write is refused only if it would not fit into an otherwise empty store. With `oldest`, it also knows which
keys must go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from keyvalue_engine import EVICT, Bucket, LimitError, StoreOptions
from keyvalue_engine.context import HashFunction
from keyvalue_engine.entry import EVICTION_BYTES
from keyvalue_engine.options import OLDEST, UNUSED
from tests.engine.test_model import BUCKETS, SHARD_KEYS_LEAST, Stored, StoreMachine, store_options

QUOTA_OPTIONS = {"quota_keys", "quota_bytes"}
#: The limits that make room by evictions.
EVICTING = QUOTA_OPTIONS | {"keys_max"}


class EvictingMachine(StoreMachine):
    def __init__(self) -> None:
        super().__init__()
        self.created: dict[tuple[bytes, bytes], int] = {}
        self.creations = 0

    @initialize(
        options=store_options(),
        eviction=st.sampled_from([OLDEST, UNUSED]),
        hash_function=st.sampled_from(list(SHARD_KEYS_LEAST)),
        quota_keys_max=st.sampled_from([None, 3, 20]),
        quota_bytes_max=st.sampled_from([None, 1_000, 5_000]),
    )
    def make(
        self,
        options: StoreOptions,
        eviction: str,
        hash_function: HashFunction,
        quota_keys_max: int | None,
        quota_bytes_max: int | None,
    ) -> None:
        self.eviction = eviction
        self.key_bytes = EVICTION_BYTES[eviction]
        super().make(options, hash_function, quota_keys_max, quota_bytes_max)

    def bounded(self, options: StoreOptions) -> StoreOptions:
        return replace(super().bounded(options), eviction=self.eviction, keys_max=10)

    def read(self, bucket: Bucket, key: bytes) -> bytes | None:
        """Read without marking the key as used."""
        entry = bucket.entry(key)
        return entry[0] if isinstance(entry, tuple) else entry

    def write(self, name: bytes, changes: Mapping[bytes, Stored], limited: bool, call: Callable[[], object]) -> None:
        expected = self.predicted_refusal(name, changes, limited) if changes else []
        self.settle_events()
        try:
            call()
        except LimitError as error:
            assert expected
            assert error.option == expected[0][0]
            assert all(event[0] != EVICT for event in self.events), "a refusal comes before the first eviction"
            if error.option in EVICTING:
                before, self.model = (
                    self.model,
                    {name: {key: self.live(name)[key] for key in changes if key in self.live(name)}},
                )
                assert self.predicted_refusal(name, changes, limited), "it does not even fit alone"
                self.model = before
            return
        evicted = [(bucket, key) for change, bucket, key, _ in self.events if change == EVICT]
        assert not evicted or expected, "keys are evicted only if the store is full"
        assert not expected or expected[0][0] in EVICTING
        covers = self.quota.reach.covers
        candidates = {(bucket, key) for bucket in BUCKETS for key in self.live(bucket)}
        candidates -= {(name, key) for key in changes}
        for at, (bucket, key) in enumerate(evicted):
            option = self.predicted_refusal(name, changes, limited)[0][0]
            assert (bucket, key) in candidates, "neither an own key nor an expired one"
            if option in QUOTA_OPTIONS:
                assert covers(bucket), at
            if self.eviction == OLDEST:
                domain = (
                    {one for one in candidates if covers(one[0])}
                    if self.of_quota(name, changes, limited)
                    else candidates
                )
                assert (bucket, key) == min(domain, key=self.created.__getitem__)
            candidates.remove((bucket, key))
            del self.model[bucket][key]
        if changes:
            assert not self.predicted_refusal(name, changes, limited)
            self.model.setdefault(name, {}).update(changes)
            self.set_keys += len(changes)
            self.written.add(name)

    def of_quota(self, name: bytes, changes: Mapping[bytes, Stored], limited: bool) -> bool:
        """Return True if a limit of the quota would be exceeded. Its keys go first."""
        if not limited:
            return False
        options, self.options = self.options, replace(self.options, keys_max=10**6)
        refused = self.predicted_refusal(name, changes, limited)
        self.options = options
        return bool(refused)

    def settle_events(self) -> None:
        """Note the order in which keys were created, and apply the events so far."""
        self.the_events_give_the_content_of_the_store()

    @rule(name=st.sampled_from(BUCKETS), data=st.data())
    def use(self, name: bytes, data: st.DataObject) -> None:
        live = sorted(self.live(name))
        if live:
            self.get(name, data.draw(st.sampled_from(live)))

    @rule(options=store_options())
    def save_and_load(self, options: StoreOptions) -> None:
        order = [(name, key) for name, entries in self.held().items() for key in entries]
        super().save_and_load(options)
        held = {(name, key) for name, entries in self.held().items() for key in entries}
        self.created = {one: number for number, one in enumerate(order) if one in held}
        self.creations = len(order)

    @invariant()
    def the_events_give_the_content_of_the_store(self) -> None:
        for _, name, key, entry in self.events:
            if entry is None:
                del self.created[name, key]
            elif (name, key) not in self.created:
                self.creations += 1
                self.created[name, key] = self.creations
        super().the_events_give_the_content_of_the_store()


EvictingMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestEvictingStore = EvictingMachine.TestCase
