"""What the user names -> records."""
