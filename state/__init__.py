"""Tables and the store that keeps them."""
