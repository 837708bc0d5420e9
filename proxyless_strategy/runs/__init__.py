"""What a user starts: one search, a sweep of searches, and what is made of a finished one."""
