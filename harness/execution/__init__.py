"""Running one stage, and what every executor shares."""
