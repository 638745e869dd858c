"""Events, the codec and the errors that every other package shares."""
