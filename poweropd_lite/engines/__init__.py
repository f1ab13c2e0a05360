"""What samples rollouts, and what guards that it samples from the weights that are trained."""
