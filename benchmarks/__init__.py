"""Speed and memory, each beside its peer in one run."""
