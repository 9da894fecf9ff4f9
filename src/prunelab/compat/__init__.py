"""What it takes to use libraries that stopped moving with Lightning 2."""
