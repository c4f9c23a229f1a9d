"""The engine and its workers: a group of ranks that computes, led by one leader that decides."""
