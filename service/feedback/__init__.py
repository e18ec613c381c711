"""What users do with what they are shown, over all users."""
