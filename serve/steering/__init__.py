"""Content steering: which delivery network a player should use, by capacity and by what is broken."""
