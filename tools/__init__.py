"""What a checkout needs around the server: the demo model, Azurite, the demo, a blob server for tests."""
