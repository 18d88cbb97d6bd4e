"""What is known about profiles, titles, renditions and networks, offline and online."""
