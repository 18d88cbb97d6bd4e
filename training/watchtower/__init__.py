"""Detection of outages in what the service sees."""
