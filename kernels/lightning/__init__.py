"""Lightning linear attention."""
