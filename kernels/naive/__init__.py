"""The obvious NumPy twin of every kernel: specification and test oracle."""
