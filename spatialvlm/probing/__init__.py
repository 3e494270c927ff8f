"""What frozen vision encoders know of space: features of rendered scenes, linear probes, similarity."""
