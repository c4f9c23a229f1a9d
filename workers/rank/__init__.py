"""One process of a tensor-parallel group."""
