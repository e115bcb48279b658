"""What an operator sees: logs and the startup ledger, every name and unit in one place."""
