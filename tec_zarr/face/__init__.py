"""What people touch: the command line, the accessor, writing, the demo."""
