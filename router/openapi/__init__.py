"""What the server publishes of its APIs: /openapi.json and docs/API.md, derived from the table of endpoints."""
