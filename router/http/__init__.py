"""The parts that all HTTP paths share: ids, keys, bodies, queries, and error formats."""
