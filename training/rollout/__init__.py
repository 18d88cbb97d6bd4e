"""How canary decisions do on simulated viewers whose challenger is known to be alike, or worse."""
