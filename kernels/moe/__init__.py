"""Mixture of experts: gate, routing, experts."""
