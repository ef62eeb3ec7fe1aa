"""Who waits for a ring, and how: a trio run, or a plain thread."""
