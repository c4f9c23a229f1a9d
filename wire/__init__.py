"""The messages between routers and workers, and the connections that carry them."""
