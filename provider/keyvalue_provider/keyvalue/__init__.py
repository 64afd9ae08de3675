"""What a caller may do, and the service that carries out calls."""
