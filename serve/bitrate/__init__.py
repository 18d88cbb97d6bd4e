"""Which rung to fetch next: sessions as tensors, the planner over the policy graph, and the rules it falls back on."""
