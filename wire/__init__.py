"""What routers and workers say to each other, and how."""
