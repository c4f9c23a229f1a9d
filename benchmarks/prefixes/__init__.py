"""A prefix cache of bounded bytes, simulated: which states are kept, and which of them go first."""
