"""What a process counts and measures: the table of metrics, and where values are kept until somebody reads them."""
