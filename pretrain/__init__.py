"""How the embedded base is made."""
