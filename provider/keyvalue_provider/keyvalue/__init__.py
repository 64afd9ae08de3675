"""What a caller may do (policy), how it uses buckets (handles), and the service that carries out calls."""
