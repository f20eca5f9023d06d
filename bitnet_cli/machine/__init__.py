"""What this computer is: CPU features, threads, caches."""
