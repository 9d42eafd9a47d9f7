"""What all backbones share: attention, embeddings, seeds, weights, media, counting, timing, records, command line."""
