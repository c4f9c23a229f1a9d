"""What outlives a router: records in SQLite, contents in plain files, in one folder that a host's replicas share."""
