"""How a head travels: its repository on the Hub, its card, and the files that serving engines load."""
