"""Updates of models: when one is due, and what one does from new events to a canary."""
