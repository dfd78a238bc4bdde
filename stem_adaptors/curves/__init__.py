"""How accuracy grows with the bytes that are stored (`curve`)."""
