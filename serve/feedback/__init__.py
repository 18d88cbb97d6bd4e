"""What people say of the outputs of models: was a row, a tag, a score, a decision or an outage right."""
