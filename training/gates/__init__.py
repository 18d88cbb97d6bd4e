"""Gates: no model becomes a canary unless its gate passed; `training.gates.gate.gate` runs one, with its report."""
