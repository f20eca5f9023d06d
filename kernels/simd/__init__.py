"""Vector types and operations, one module an instruction set."""
