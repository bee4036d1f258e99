"""What skorch lacks: the context, order and stages of callbacks, the clock, several processes."""
