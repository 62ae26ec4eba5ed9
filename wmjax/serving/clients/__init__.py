"""The other side of the dialects: clients of policies that another program serves."""
