"""From documents to batches: order, reading, packing, resuming; what all datamodules share."""
