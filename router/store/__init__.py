"""Storage that outlives a router: records in a database, and contents of files in a folder that routers share."""
