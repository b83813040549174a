"""What travels: the knock's bytes and the client that sends them."""
