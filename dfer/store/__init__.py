"""The bytes of shards: format, disk, object storage, cache, checks."""
