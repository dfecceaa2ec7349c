"""From shards to batches: format, order, sampling, store, decode, augmentation, loader."""
