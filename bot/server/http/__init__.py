"""What the instance serves over HTTP: lightning addresses."""
