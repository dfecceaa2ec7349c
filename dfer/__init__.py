"""dfer: distributed training for facial expression recognition in video with vision-language models."""
