"""What will happen, before training; and what happened, after it."""
