"""Build WebDataset shards, with an index each and one manifest, from raw data sets; generate faces as a stand-in."""
