"""The store on disk: plan, units, shards, manifest. Numpy only: reading and verifying a store needs no torch."""

from kdcache.store.convert import convert
from kdcache.store.plan import Plan
from kdcache.store.plan_file import read_plan
from kdcache.store.reader import StoreReader, open_store
from kdcache.store.schema import StoredField, plain_field
from kdcache.store.verify import describe, verify
from kdcache.store.writer import StoreWriter

__all__ = [
    "Plan",
    "StoreReader",
    "StoreWriter",
    "StoredField",
    "convert",
    "describe",
    "open_store",
    "plain_field",
    "read_plan",
    "verify",
]
