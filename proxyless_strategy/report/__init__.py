"""Pictures of finished searches."""
