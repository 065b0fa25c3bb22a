"""What is in a file, a folder or shards, measured and told: the inside of `mmpredict inspect`."""
