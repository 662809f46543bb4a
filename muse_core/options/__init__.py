"""Options classes: described, checked, bounded."""
