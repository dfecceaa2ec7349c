"""Raw data sets in, WebDataset shards with an index and a manifest out; generated faces for those without data."""
