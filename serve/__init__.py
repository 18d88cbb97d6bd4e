"""The online service: the graph, its stages and the gateway."""
