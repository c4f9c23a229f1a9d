"""Takes requests from the HTTP APIs to the workers, and their tokens back."""
