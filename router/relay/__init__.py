"""A request's way from the HTTP APIs to the workers and back."""
