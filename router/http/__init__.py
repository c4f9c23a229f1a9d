"""What holds for every HTTP path: ids, keys, bodies, queries, and how errors are written."""
