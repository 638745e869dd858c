"""Training: rows from the decision log or from a simulated world, the fit, and what a card must say of the result."""
