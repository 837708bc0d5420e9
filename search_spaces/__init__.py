"""What can be chosen."""
