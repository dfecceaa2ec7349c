"""From shards to batches: clips, splits, order, sampling, decoding, augmentation, loaders."""
