"""The user interface: the command line, the accessor ``.tec``, writing, the demo."""
