"""Read shards: format, local disk, object storage, cache, verification."""
