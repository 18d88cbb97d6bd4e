"""What players and edges tell each other over HTTP headers and query strings: CMCD from the player, CMSD to it."""
