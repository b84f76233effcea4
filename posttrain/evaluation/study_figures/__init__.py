"""What the report draws of each study, from its files alone."""
