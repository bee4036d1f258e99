"""What skorch lacks: stages, order and context of callbacks, a clock, several processes."""
