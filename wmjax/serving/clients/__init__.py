"""The other side of the dialects: policies that another program serves, asked for actions."""
