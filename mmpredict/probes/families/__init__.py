"""What is asked of the world: one module per kind of situation, one function per family."""
