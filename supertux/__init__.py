"""Where frames come from. `homework` never imports this package."""
