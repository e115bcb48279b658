"""`coldstream bench`: cold starts of a user's model, measured and compared."""
