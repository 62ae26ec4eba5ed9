"""A trained policy behind a socket: batched decisions, one session per connection, one dialect per port."""
