"""Pictures and pages about a finished search."""
