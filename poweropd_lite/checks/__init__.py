"""What train refuses and doctor prints."""
